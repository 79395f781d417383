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
    that one forward serves them all.
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
        self._planned = tuple(planned)
        self._found: dict[Callable[[Probe], Any], Any] = {}

    @property
    def images(self) -> Tensor:
        """(n, c, h, w) float: a copy, since the first layer of a network may work in place."""
        return self._images.clone()

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
            self._found.update(observe(self, [each for each in wanted if each not in self._found]).items())
        return cast(Value, self._value(observer))

    def shared(self, compute: Callable[[Probe], Value]) -> Value:
        """What `compute` gives for this probe, computed when it is first asked for; its DegenerateNetworkError too."""
        if compute not in self._found:
            try:
                self._found[compute] = compute(self)
            except DegenerateNetworkError as error:
                self._found[compute] = error.with_traceback(None)  # which would keep feature maps
        return cast(Value, self._value(compute))

    def _value(self, key: Callable[[Probe], Any]) -> Any:
        if isinstance(found := self._found[key], DegenerateNetworkError):
            raise found.with_traceback(None)
        return found


def normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) in the shape, type and place of a tensor, drawn where the generator is: the same on every device."""
    drawn = torch.randn(tensor.shape, generator=generator, device=generator.device)
    return drawn.to(tensor.device, tensor.dtype)
