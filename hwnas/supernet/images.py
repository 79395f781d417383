"""A data set at every resolution of a space."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hwnas.space import Arch, SearchSpace
from hwnas.train.batches import RESIZED_BYTES
from hwnas.train.data import ImageData
from hwnas.train.preprocess import normalise, resize

_CALIBRATION = 2000  # images for statistics of batch normalisations: Once-for-All's number
_CALIBRATION_BATCH = 200


class SupernetImages:
    """Training images (count of them) with (count,) `labels` on the device, kept at every resolution asked for."""

    def __init__(self, data: ImageData, space: SearchSpace, device: torch.device) -> None:
        self.data, self.device, self.count = data, device, len(data.x_train)
        self.labels, self.largest = data.y_train.to(device), space.largest_input[1]
        self._space = space
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def at(self, size: int, chosen: Tensor) -> Tensor:
        """(n,) indices -> (n, channels, size, size) uint8 images on the device."""
        if size not in self._kept:
            extent = self.count * self.data.channels * size * size
            if self._bytes + extent > RESIZED_BYTES:  # beyond that, batch by batch
                return resize(self.data.x_train[chosen], size).to(self.device)
            self._bytes += extent
            self._kept[size] = resize(self.data.x_train, size).to(self.device)
        return self._kept[size][chosen.to(self.device)]

    def calibration(self, arch: Arch) -> Iterator[Tensor]:
        """Batches of an architecture's input for the statistics of its batch normalisations: the same in every call."""
        size = self.size_of(arch)
        chosen = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))[:_CALIBRATION]
        for part in torch.split(chosen, _CALIBRATION_BATCH):
            yield self.inputs(self.at(size, part), size)

    def inputs(self, images: Tensor, size: int) -> Tensor:
        """uint8 images -> standardised floats, in the memory format that convolutions are fast in."""
        inputs = normalise(images, self.data.mean, self.data.std, size)
        return inputs.contiguous(memory_format=torch.channels_last)

    def size_of(self, arch: Arch) -> int:
        """Pixels of an architecture's input along one side."""
        return self._space.input_shape(arch)[1]
