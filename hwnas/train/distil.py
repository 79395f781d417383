"""A network that learns from another: knowledge distillation, and what is not touched frozen at first.

Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2: the student matches the teacher's probabilities at a
temperature T, which makes the small ones count; the loss is multiplied by T squared, so that its gradients keep their
size. LEMONADE (arXiv 1804.09081, section 3.2) first trains only what an approximate morphism touched, with the parent
as teacher, then everything: `untouched` of `inherit` are frozen for `frozen_epochs`.

While its parameters are frozen a batch normalisation runs with its running statistics, which stay as they are: so the
frozen part is the parent's function, and the touched part learns what that expects.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from hwnas.errors import RecipeError
from hwnas.train.checkpoint import identity_of


@dataclass(frozen=True, eq=False)
class Distil:
    """What to learn from: loss = (1 - weight) * cross-entropy + weight * distillation loss.

    The teacher sees the student's batches, in evaluation mode. `untouched`: names of the student's parameters that stay
    as they are for the first `frozen_epochs`; none do if these are all. Raises RecipeError on a value that cannot be
    used.
    """

    teacher: nn.Module = field(repr=False)
    weight: float = 0.5
    temperature: float = 2.0
    frozen_epochs: int = 0
    untouched: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("weight", 0 <= self.weight <= 1, "in [0, 1]"),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("frozen_epochs", self.frozen_epochs >= 0, "0 or above"),
        ):
            if not good:
                raise RecipeError(f"distillation setting {name} must be {expected}, got {getattr(self, name)!r}")

    @property
    def identity(self) -> str:
        """A digest of the settings and of the teacher, its weights included."""
        digest = hashlib.sha256()
        for name, value in self.teacher.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        settings = (self.weight, self.temperature, self.frozen_epochs, self.untouched, digest.hexdigest())
        return identity_of(self.teacher, settings)


class Lesson:
    """A Distil made ready for one student and device. Raises RecipeError on names that are not the student's."""

    def __init__(self, distil: Distil, student: nn.Module, device: torch.device) -> None:
        names = [name for name, _ in student.named_parameters()]
        unknown = sorted(set(distil.untouched) - set(names))
        if unknown:
            raise RecipeError(f"untouched names {unknown[0]!r}, no parameter of the network: {', '.join(names)}")
        self._distil = distil
        # where a step touched no parameter (another resolution, an edge that became a skip) all of them learn
        self._untouched = () if set(names) <= set(distil.untouched) else distil.untouched
        # a copy, so that the caller's teacher keeps its device and mode
        self._teacher = copy.deepcopy(distil.teacher).to(device).eval().requires_grad_(False)

    def frozen(self, epoch: int) -> Collection[str]:
        """The parameters that stay as they are in an epoch, counted from 0."""
        return self._untouched if epoch < self._distil.frozen_epochs else ()

    def set_apart(self, optimizer: torch.optim.Optimizer, student: nn.Module) -> None:
        """Give what begins to learn later groups of its own: torch's fused optimisers need one age within a group."""
        late = {id(student.get_parameter(name)) for name in self.frozen(0)}
        for group in list(optimizer.param_groups):
            mine = [parameter for parameter in group["params"] if id(parameter) in late]
            if mine:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in late]
                optimizer.add_param_group({**group, "params": mine})

    def blended(self, loss: Tensor, logits: Tensor, inputs: Tensor) -> Tensor:
        """The cross-entropy `loss` of a batch, and what the teacher says of (batch, channels, size, size) `inputs`."""
        if self._distil.weight == 0:
            return loss
        with torch.no_grad():
            taught = self._teacher(inputs)
        weight = self._distil.weight
        return (1 - weight) * loss + weight * distillation_loss(logits, taught, self._distil.temperature)


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of softened probabilities, (batch, classes) both; the mean over the batch.

    Its gradient with respect to the logits is T (q - p) / batch: eq. 2 of arXiv 1503.02531, times T^2.
    """
    student, teacher = (log_softmax(values.float() / temperature, 1) for values in (logits, taught))
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)


@contextmanager
def training_mode(module: nn.Module, frozen: Collection[str] = ()) -> Iterator[None]:
    """Training mode, but for the parameters named in `frozen`: they get no gradients meanwhile, and batch
    normalisations all of whose parameters they are run as in evaluation."""
    module.train()
    chosen = set(frozen)
    parameters = [p for name, p in module.named_parameters() if name in chosen and p.requires_grad]
    for prefix, part in module.named_modules():
        own = {f"{prefix}.{name}" if prefix else name for name, _ in part.named_parameters(recurse=False)}
        if isinstance(part, nn.BatchNorm2d) and own and own <= chosen:
            part.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        module.train()
        for parameter in parameters:
            parameter.requires_grad_(True)
