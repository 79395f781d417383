"""Train the supernet of a space, stage by stage, within a budget of epochs or of minutes.

All randomness of a step follows from the seed, the stage and the step, so a training in epochs that goes on from a
checkpoint takes the very steps of one that was never stopped. One in minutes takes as many as the machine manages, and
its learning rates follow the clock; how much of them is spent is in the checkpoint, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hwnas.errors import RecipeError
from hwnas.space import Arch, IntMatrix, rows_of
from hwnas.supernet.batches import StepBatches
from hwnas.supernet.elastic import Supernet
from hwnas.supernet.extremes import largest_arch, smallest_arch
from hwnas.supernet.images import SupernetImages
from hwnas.supernet.sorting import sort_channels
from hwnas.supernet.stages import Stage, StageSampler, resolution_slots, stages_of
from hwnas.supernet.teacher import Teacher
from hwnas.train.average import WeightAverage
from hwnas.train.checkpoint import identity_of, load_checkpoint, save_checkpoint
from hwnas.train.data import ImageData
from hwnas.train.device import mixed_precision
from hwnas.train.distributed import average_gradients, connect, from_first, ranks, take_from_first, total
from hwnas.train.isolation import at_most_threads, own_random_state, repeatable_kernels, seed_modules
from hwnas.train.loop import TrainingFailed
from hwnas.train.mix import Mix
from hwnas.train.policies import Augmentation
from hwnas.train.scalars import scalar_log
from hwnas.train.schedule import rate_factor

Progress = Callable[[str, int, int, dict[str, float]], None]
Log = Callable[[int, Mapping[str, float]], None]
_PERMILLE = 1000


@dataclass(frozen=True)
class SupernetConfig:
    """How to train a supernet: `epochs` of images, or `minutes`, over all stages; one of them is given.

    An epoch is every training image once, however many subnets see it. `ema`: decay per step of an average over the
    weights (see `hwnas/train/average.py`), begun anew by every stage, as channels are sorted before some, and at the
    end of a stage taken for what it trained; 0 takes the last weights. Raises RecipeError on what cannot be used.
    """

    method: str = "progressive"
    epochs: float | None = None
    minutes: float | None = None
    batch_size: int = 64
    learning_rate: float = 0.2
    weight_decay: float = 3e-5
    label_smoothing: float = 0.1
    augment: Augmentation = "crop"
    mix: Mix = "none"
    ema: float = 0.0
    checkpoint_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        budget = self.epochs if self.minutes is None else self.minutes
        for name, good, expected in (
            ("epochs", (self.epochs is None) != (self.minutes is None), "given, or minutes, and not both"),
            ("epochs", budget is not None and 0 < budget < math.inf, "above 0 (as minutes are)"),
            ("batch_size", self.batch_size >= 2, "at least 2, for batch normalisation"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or above"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("augment", self.augment in get_args(Augmentation), f"one of {get_args(Augmentation)}"),
            ("mix", self.mix in get_args(Mix), f"one of {get_args(Mix)}"),
            ("ema", 0 <= self.ema < 1, "in [0, 1)"),
            ("seed", self.seed >= 0, "0 or above"),
        ):
            if not good:
                raise RecipeError(f"supernet setting {name} must be {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class _Stand:
    """How far the training is: a step of a stage, the share of the stage that is done, and its seconds."""

    stage: int = 0
    step: int = 0
    progress: float = 0.0
    seconds: float = 0.0


def train_supernet(
    supernet: Supernet,
    data: ImageData,
    config: SupernetConfig,
    *,
    latency_ms: Callable[[IntMatrix], np.ndarray] | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    max_threads: int | None = None,
    log_dir: Path | None = None,
) -> None:
    """Train `supernet` in place; it stays on `device`.

    `latency_ms` (n, slots) -> (n,) spreads the drawn subnets evenly over latency. `checkpoint`: a file of this
    training alone, written every `checkpoint_seconds` and after each stage, and gone on from if it exists.
    `progress(stage, thousandths done, 1000, facts)` is called now and then; an exception it raises ends the training.
    Its facts are "train_loss" of a step, the "learning_rate", "images_per_second" and the stage's "seconds_left".
    `log_dir`: where these go for TensorBoard, by stage and step. Under torchrun every process calls this with the same
    arguments and works on its share of each batch; only the first reads and writes the checkpoint, logs and tells of
    progress. Raises TrainingFailed if the loss becomes infinite or NaN.
    """
    device = connect(torch.device(device))
    settings = {**asdict(config), "checkpoint_seconds": None}
    facts = (data.name, data.class_names, len(data.x_train), data.mean, data.std, latency_ms is not None)
    identity = identity_of(supernet, settings, supernet.space.config, facts)
    stages = stages_of(config.method, supernet.space)
    checkpoint, progress, log_dir = (checkpoint, progress, log_dir) if ranks().first else (None, None, None)
    with at_most_threads(max_threads), own_random_state(device), repeatable_kernels(device):
        supernet.to(device).train()
        take_from_first(supernet)
        images = SupernetImages(data, supernet.space, device)
        batches = StepBatches(images, size=config.batch_size, augment=config.augment, mix=config.mix, seed=config.seed)
        stand, teacher = _Stand(), None
        state = from_first(None if checkpoint is None else load_checkpoint(checkpoint, identity))
        if state is not None:
            supernet.load_state_dict(state["supernet"])
            stand = _Stand(**state["stand"])
        if any(stage.taught for stage in stages[1:]):
            teacher = Teacher(supernet, images, None if state is None else state["teacher"])
        for number in range(stand.stage, len(stages)):
            if number > stand.stage:
                stand = _Stand(number)
            begun = state if stand.step else None
            if begun is None and stages[number].sort:
                sort_channels(supernet, stages[number - 1])
            training = _StageTraining(supernet, batches, config, stages, number, teacher, latency_ms, begun)

            def save(stand: _Stand, training: _StageTraining = training) -> None:
                if checkpoint is not None:
                    now: dict[str, Any] = {
                        "supernet": supernet.state_dict(),
                        **training.state(),
                        "teacher": None if teacher is None else teacher.state,
                        "stand": asdict(stand),
                    }
                    save_checkpoint(checkpoint, identity, now)

            with scalar_log(None if log_dir is None else log_dir / stages[number].name, stand.step) as log:

                def tell(stand: _Stand, facts: dict[str, float], log: Log = log, stage: Stage = stages[number]) -> None:
                    log(stand.step, facts)
                    if progress is not None:
                        name = f"supernet: {stage.name} ({stand.stage + 1} of {len(stages)})"
                        progress(name, round(_PERMILLE * stand.progress), _PERMILLE, facts)

                training.run(stand, save, tell)
            if number == 0 and teacher is not None:
                teacher.learn(supernet)
            save(_Stand(number + 1))
            state = None


class _StageTraining:
    """The steps of one stage."""

    def __init__(
        self,
        supernet: Supernet,
        batches: StepBatches,
        config: SupernetConfig,
        stages: tuple[Stage, ...],
        number: int,
        teacher: Teacher | None,
        latency_ms: Callable[[IntMatrix], np.ndarray] | None,
        state: Mapping[str, Any] | None,
    ) -> None:
        self._supernet, self._batches, self._config = supernet, batches, config
        self._stage, self._number = stages[number], number
        self._teacher = teacher if stages[number].taught else None
        self._draw = StageSampler(supernet.space, stages[number], latency_ms)
        self._sizes = resolution_slots(supernet.space)
        self._ends = largest_arch(supernet.space), smallest_arch(supernet.space)
        decayed = [weight for weight in supernet.parameters() if weight.ndim > 2]
        plain = [weight for weight in supernet.parameters() if weight.ndim <= 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        # foreach, not fused: a step uses a part of the weights, and what has no gradient stays as it is
        self._optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, foreach=True)
        self._average = WeightAverage(supernet, config.ema) if config.ema else None
        if state is not None:
            self._optimizer.load_state_dict(state["optimizer"])
            if self._average is not None:
                self._average.restore(state["average"])
        share, per_epoch = self._stage.share, batches.per_epoch
        self._steps = None if config.epochs is None else max(1, round(share * config.epochs * per_epoch))
        self._seconds = None if config.minutes is None else share * config.minutes * 60

    def state(self) -> dict[str, Any]:
        """What a training of the stage that begins at a later step goes on from, beside the supernet."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._average is None else self._average.state(),
        }

    def run(
        self, stand: _Stand, save: Callable[[_Stand], None], tell: Callable[[_Stand, dict[str, float]], None]
    ) -> None:
        """Take the steps from `stand` on to the end of the stage."""
        began = time.monotonic() - stand.seconds
        saved, told, seen, begun_at = time.monotonic(), -math.inf, 0, stand.seconds
        while stand.progress < 1:
            middle = stand.progress if self._steps is None else (stand.step + 0.5) / self._steps
            rate = self._config.learning_rate * self._stage.rate * rate_factor(middle, self._stage.warmup)
            loss = self._step(stand.step, rate)
            seen += self._config.batch_size
            seconds = time.monotonic() - began
            done = (stand.step + 1) / self._steps if self._steps is not None else seconds / (self._seconds or 1)
            # all processes take the same decisions, whatever their clocks say
            stand = from_first(_Stand(self._number, stand.step + 1, min(done, 1.0), seconds))
            if (now := time.monotonic()) - told >= 1 or stand.progress == 1:
                told = now
                speed = seen / max(seconds - begun_at, 1e-9)
                left = seconds * (1 - stand.progress) / stand.progress
                facts = {"train_loss": self._finite(loss, stand), "learning_rate": rate}
                tell(stand, {**facts, "images_per_second": speed, "seconds_left": left})
            if now - saved >= self._config.checkpoint_seconds and stand.progress < 1:
                saved = now
                save(stand)
        if self._average is not None:
            self._average.install()

    def _finite(self, loss: Tensor, stand: _Stand) -> float:
        if not math.isfinite(found := float(loss)):
            raise TrainingFailed(
                f"the supernet diverged in step {stand.step} of stage {self._stage.name!r}: its loss is {found}; lower "
                f"supernet.learning_rate ({self._config.learning_rate:g})"
            )
        return found

    def _step(self, step: int, rate: float) -> Tensor:
        """One batch through some subnets, whose gradients add up as in both papers; their mean loss."""
        config, stage = self._config, self._stage
        entropy = (config.seed, self._number, step)
        rng = np.random.default_rng(entropy)
        device = self._batches.images.device
        seed_modules(int(rng.integers(2**31)), device)
        archs = self._archs(rng)
        batch = self._batches.batch(self._number, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros((), device=device)
        said: Tensor | None = None  # by the largest subnet of a sandwich
        for number, arch in enumerate(archs):
            inputs = batch.inputs(self._batches.images.size_of(arch))
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision(device)):
                logits = self._supernet(inputs, arch)
                if stage.sandwich and number:
                    assert said is not None
                    loss = cross_entropy(logits, said)
                else:
                    loss = cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)
                    if self._teacher is not None:
                        loss = (loss + cross_entropy(logits, self._teacher(inputs).float().softmax(1))) / 2
            if stage.sandwich and not number:
                said = logits.detach().float().softmax(1)
            loss.backward()  # type: ignore[no-untyped-call]
            mean += loss.detach() * (batch.part / len(archs))
        average_gradients(self._supernet.parameters(), batch.part)
        if stage.clip is not None:
            nn.utils.clip_grad_norm_(self._supernet.parameters(), stage.clip)
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
        return total(mean)

    def _archs(self, rng: np.random.Generator) -> list[Arch]:
        """The subnets of one step: the first stage's is the largest, at any resolution."""
        drawn = rows_of(self._draw(self._stage.subnets, rng))
        if self._stage.sandwich:
            return [self._ends[0], self._ends[1], *drawn]
        # one resolution for the whole step, as the teacher is asked at it
        return [self._at_resolution_of(arch, drawn[0]) for arch in drawn]

    def _at_resolution_of(self, arch: Arch, other: Arch) -> Arch:
        return tuple(other[slot] if slot in self._sizes else option for slot, option in enumerate(arch))
