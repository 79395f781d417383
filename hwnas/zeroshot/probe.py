"""What a score is given: one network, one batch, and the passes over them that several scores share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.forward import Observer, observe

Value = TypeVar("Value")


class Probe:
    """A network and a batch: images (n, c, h, w) float on the module's device, labels (n,) int or None, a seed.

    What several scores need is computed once: what a forward shows, by an observer asked for through `seen`; any other
    pass, by a function of the probe asked for through `shared`. `planned` are the observers that will be asked for, so
    that one forward serves them all. Passes that are made through `seen` and `shared` are repeated with the images as
    they came where a network cannot take them with channels last, as this class gives them on a CPU.
    """

    def __init__(
        self,
        module: nn.Module,
        images: Tensor,
        labels: Tensor | None = None,
        seed: int = 0,
        planned: Iterable[type[Observer[Any]]] = (),
    ) -> None:
        self.module, self.seed = module, seed
        self._images, self._labels = images, labels
        # Convolutions of a CPU are faster with channels last, pooling and batch normalisation much so
        self._channels_last = images.dim() == 4 and images.device.type == "cpu"
        self._planned = tuple(planned)
        _keep_freed_memory()
        self._found: dict[Callable[[Probe], Any], Any] = {}

    @property
    def images(self) -> Tensor:
        """(n, c, h, w) float, on a CPU with channels last: a copy, since a network's first layer may work in place."""
        return self._images.clone(memory_format=torch.channels_last if self._channels_last else torch.preserve_format)

    @property
    def labels(self) -> Tensor:
        """(n,) int. Raises DegenerateNetworkError if the batch came without."""
        if self._labels is None:
            raise DegenerateNetworkError("this score needs the labels of the images, and none were given")
        return self._labels

    def generator(self) -> torch.Generator:
        """A generator on the CPU that starts from the seed: what a score draws does not depend on other scores."""
        return torch.Generator().manual_seed(self.seed)

    def seen(self, observer: type[Observer[Value]]) -> Value:
        """What the observer makes of a forward, run when it is first asked for; its DegenerateNetworkError too."""
        if observer not in self._found:
            wanted = dict.fromkeys((observer, *self._planned))
            missing = [each for each in wanted if each not in self._found]
            self._found.update(self._in_some_layout(lambda probe: observe(probe, missing)).items())
        return cast(Value, self._value(observer))

    def shared(self, compute: Callable[[Probe], Value]) -> Value:
        """What `compute` gives for this probe, computed when it is first asked for; its DegenerateNetworkError too."""
        if compute not in self._found:
            try:
                self._found[compute] = self._in_some_layout(compute)
            except DegenerateNetworkError as error:
                self._found[compute] = error.with_traceback(None)  # which would keep feature maps
        return cast(Value, self._value(compute))

    def _in_some_layout(self, compute: Callable[[Probe], Value]) -> Value:
        """What `compute` gives, with the images as they came if the network cannot take them with channels last."""
        if self._channels_last:
            try:
                return compute(self)
            except RuntimeError:  # of `Tensor.view`, say
                self._channels_last = False
        return compute(self)

    def _value(self, key: Callable[[Probe], Any]) -> Any:
        if isinstance(found := self._found[key], DegenerateNetworkError):
            raise found.with_traceback(None)
        return found


def _keep_freed_memory() -> None:
    """Let the C library keep what feature maps leave behind, where it is glibc; others do not care.

    It gives large blocks back to the system as soon as they are freed, and a forward without a graph spends a third of
    its time on getting them again, page by page. The largest block freed so far is what it takes for large: after this
    one, never touched, what has more than 32 MiB.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device="cpu")


def normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) in the form and place of a tensor, drawn where the generator is: the same on every device."""
    drawn = torch.randn(tensor.shape, generator=generator, device=generator.device)
    return torch.empty_like(tensor).copy_(drawn)
