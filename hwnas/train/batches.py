"""The batches of an epoch, augmented and standardised; every draw follows from the seed and the epoch's number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwnas.errors import RecipeError
from hwnas.train.augment import draw_moves, move
from hwnas.train.config import TrainConfig
from hwnas.train.data import ImageData
from hwnas.train.distributed import ranks, share
from hwnas.train.isolation import seed_modules
from hwnas.train.mix import mixer
from hwnas.train.policies import augmented, moves_before, policy, window_length
from hwnas.train.preprocess import normalise, resize

RESIZED_BYTES = 4 * 2**30  # a larger resized data set is resized batch by batch instead


def batch_count(n: int, batch_size: int) -> int:
    """Into how many batches n images go: nearly equal ones, never one of a single image (batch normalisation)."""
    return max(1, min(math.ceil(n / batch_size), n // 2))


def placed(x: Tensor, size: int | None, device: torch.device) -> Tensor:
    """The images resized once and kept on the device, or as they are, to be resized by the batch, if that is huge.

    `size` None: not to be resized.
    """
    height, width = x.shape[2:] if size is None else (size, size)
    if len(x) * x.shape[1] * height * width > RESIZED_BYTES:
        return x
    return (x if size is None else resize(x, size)).to(device)


@dataclass(frozen=True, eq=False)
class Batch:
    """This process's share of a batch: (n, channels, size, size) float32 inputs in the memory format channels_last.

    `labels` are (n,) int64, or (n, classes) shares where images are mixed; `part` is n over the whole batch's.
    """

    inputs: Tensor
    labels: Tensor
    part: float


class Batches:
    """The training images, kept where they are needed.

    Raises RecipeError where a process would get less than two images of a batch, DataError if the images do not suit
    the augmentation.
    """

    def __init__(self, data: ImageData, size: int, config: TrainConfig, device: torch.device) -> None:
        n, processes = len(data.x_train), ranks().count
        self.images = n
        self.count = batch_count(n, config.batch_size)
        if processes > 1 and n // self.count < 2 * processes:
            raise RecipeError(
                f"{processes} processes cannot share batches of {n // self.count} images, at least 2 images each: "
                "raise batch_size, or start fewer processes"
            )
        self._data, self._size, self._config, self._device = data, size, config, device
        self._moves = moves_before(config.augment)
        self._policy = policy(config.augment, size, data.mean)
        self._mixed = mixer(config.mix, data.num_classes)
        # an image that is mixed with one of another process needs that one, too
        self._with_previous = processes > 1 and config.mix != "none"
        # random resized crops are of the images as they are, so that they lose no detail
        self._crops = config.augment == "random_resized_crop"
        side = max(data.x_train.shape[2:]) if self._crops else size
        self._x = placed(data.x_train, None if self._crops else size, device)
        self._y = data.y_train.to(device)
        self._window = 1 if self._policy is None else window_length(config.batch_size, data.channels * side * side)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Every image once, in an order of the epoch's own. Seeds what dropout and its like draw from as well."""
        entropy = np.random.SeedSequence((self._config.seed, number))
        order_seed, module_seed = entropy.generate_state(2, np.uint32).tolist()
        seed_modules(module_seed + ranks().index, self._device)
        generator = torch.Generator().manual_seed(order_seed)
        n = self.images
        order = torch.randperm(n, generator=generator).to(self._x.device)
        moves = draw_moves(self._moves, n, self._size, generator).to(self._device)
        rng = np.random.default_rng(entropy.spawn(1)[0])
        mix_seeds = rng.integers(2**62, size=self.count).tolist()
        rows, steps = order.tensor_split(self.count), moves.tensor_split(self.count)
        for start in range(0, self.count, self._window):
            window = range(start, min(start + self._window, self.count))
            images = [self._images(self._mine(rows[batch]), self._mine(steps[batch])) for batch in window]
            if self._policy is not None:
                places = [self._mine(torch.arange(len(rows[batch]))) for batch in window]
                seeds = rng.integers(2**62, size=len(rows[start])).tolist()
                images = augmented(self._policy, images, places, seeds)
            for batch, x in zip(window, images, strict=True):
                yield self._batch(
                    x, self._y[self._mine(rows[batch]).to(self._device)], len(rows[batch]), mix_seeds[batch]
                )

    def _mine(self, batch: Tensor) -> Tensor:
        """This process's share, after the one before it where that is needed."""
        if not self._with_previous:
            return share(batch)
        return torch.cat([share(batch.roll(1, 0))[:1], share(batch)])

    def _images(self, rows: Tensor, moves: Tensor) -> Tensor:
        images = self._x.index_select(0, rows)
        if not self._crops:
            images = resize(images, self._size)
        images = images.to(self._device)
        return images if self._moves == "none" else move(images, moves)

    def _batch(self, images: Tensor, labels: Tensor, whole: int, seed: int) -> Batch:
        images = images.contiguous(memory_format=torch.channels_last)
        inputs, labels = self._mixed(normalise(images, self._data.mean, self._data.std, self._size), labels, seed)
        if self._with_previous:
            inputs, labels = inputs[1:], labels[1:]
        return Batch(inputs.contiguous(memory_format=torch.channels_last), labels, len(labels) / whole)
