"""What a score is given: one network, one batch, and the passes over them that several scores share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from hwnas.zeroshot import DegenerateNetworkError

Value = TypeVar("Value")


class Probe:
    """A network and a batch: images (n, c, h, w) float on the module's device, labels (n,) int or None, a seed.

    A pass that several scores need is a function of the probe, asked for through `shared`.
    """

    def __init__(self, module: nn.Module, images: Tensor, labels: Tensor | None = None, seed: int = 0) -> None:
        self.module, self.seed = module, seed
        self._images, self._labels = images, labels
        self._shared: dict[Callable[[Probe], Any], Any] = {}

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

    def shared(self, compute: Callable[[Probe], Value]) -> Value:
        """What `compute` gives for this probe, computed when it is first asked for; its DegenerateNetworkError too."""
        if compute not in self._shared:
            try:
                self._shared[compute] = compute(self)
            except DegenerateNetworkError as error:
                self._shared[compute] = error
        if isinstance(found := self._shared[compute], DegenerateNetworkError):
            raise found
        return cast(Value, found)


def normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) in the shape, type and place of a tensor, drawn where the generator is: the same on every device."""
    drawn = torch.randn(tensor.shape, generator=generator, device=generator.device)
    return drawn.to(tensor.device, tensor.dtype)
