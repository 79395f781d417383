"""A data set at every resolution of a space: batches of one draw of images, as any subnet reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwnas.space import Arch, SearchSpace
from hwnas.train.augment import Augment, draw_moves, move
from hwnas.train.batches import RESIZED_BYTES, batch_count
from hwnas.train.data import ImageData
from hwnas.train.distributed import share
from hwnas.train.preprocess import normalise, resize

_CALIBRATION = 2000  # images for statistics of batch normalisations: Once-for-All's number
_CALIBRATION_BATCH = 200


class SupernetImages:
    """Training images (count of them) with labels on the device, kept at every resolution that was asked for."""

    def __init__(self, data: ImageData, space: SearchSpace, device: torch.device) -> None:
        self.data, self.device, self.count = data, device, len(data.x_train)
        self._space = space
        self._labels = data.y_train.to(device)
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0
        self._order: tuple[tuple[int, int, int], Tensor] | None = None

    def batches(self, size: int) -> int:
        """How many batches of at most `size` images an epoch has."""
        return batch_count(self.count, size)

    def batch(self, seed: int, stage: int, step: int, size: int, augment: Augment) -> Batch:
        """The batch of a step: every image once an epoch, in an order that follows from seed, stage and epoch."""
        per_epoch = self.batches(size)
        epoch, place = divmod(step, per_epoch)
        if self._order is None or self._order[0] != (seed, stage, epoch):
            generator = torch.Generator().manual_seed(_seed(seed, stage, epoch, 0))
            self._order = (seed, stage, epoch), torch.randperm(self.count, generator=generator)
        whole = self._order[1].tensor_split(per_epoch)[place]
        mine = share(whole)
        labels = self._labels[mine.to(self.device)]
        return Batch(self, whole, mine, labels, len(mine) / len(whole), augment, _seed(seed, stage, step, 1))

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
        size = self._space.input_shape(arch)[1]
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


@dataclass(frozen=True, eq=False)
class Batch:
    """This process's `part` of a batch, `mine` of the `whole`: (n,) indices with labels.

    Every resolution is augmented anew, by the same seed.
    """

    images: SupernetImages
    whole: Tensor
    mine: Tensor
    labels: Tensor
    part: float
    augment: Augment
    seed: int

    def inputs(self, arch: Arch) -> Tensor:
        """(n, channels, size, size) float: the batch as an architecture reads it."""
        size = self.images.size_of(arch)
        pixels = self.images.at(size, self.mine)
        if self.augment != "none":
            generator = torch.Generator().manual_seed(self.seed)
            moves = share(draw_moves(self.augment, len(self.whole), size, generator))
            pixels = move(pixels, moves.to(pixels.device))
        return self.images.inputs(pixels, size)


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])
