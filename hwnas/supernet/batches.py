"""The batch of every step of a supernet's training, at any resolution that one of the step's subnets reads.

Every draw follows from the seed, the stage and the step, so any step can be asked for. Our own moves are drawn anew at
every resolution, by one seed. What torchvision does to images, and their mixing, is done once, at the largest
resolution, and then shrunk: all subnets of a step see the same images, as one that learns from another must, and a
policy costs no more than in the training of one network (`hwnas/train/policies.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hwnas.supernet.images import SupernetImages
from hwnas.train.augment import draw_moves, move
from hwnas.train.batches import batch_count, placed
from hwnas.train.distributed import ranks, share
from hwnas.train.mix import Mix, mixer
from hwnas.train.policies import Augmentation, augmented, moves_before, policy, window_length


@dataclass(frozen=True, eq=False)
class Batch:
    """This process's `part` of a batch: `labels` are (n,) int64, or (n, classes) shares where images are mixed."""

    labels: Tensor
    part: float
    _made: Callable[[int], Tensor] = field(repr=False)
    _kept: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def inputs(self, size: int) -> Tensor:
        """(n, channels, size, size) float32, standardised, in the memory format channels_last; made once."""
        if size not in self._kept:
            self._kept[size] = self._made(size).contiguous(memory_format=torch.channels_last)
        return self._kept[size]


class StepBatches:
    """Batches of at most `size` training images, augmented and mixed.

    Raises DataError if the images do not suit the augmentation.
    """

    def __init__(self, images: SupernetImages, *, size: int, augment: Augmentation, mix: Mix, seed: int) -> None:
        data, self._largest = images.data, images.largest
        self.images, self._seed = images, seed
        self.per_epoch = batch_count(images.count, size)
        self._moves = moves_before(augment)
        self._policy = policy(augment, self._largest, data.mean)
        self._mixed = mixer(mix, data.num_classes)
        self._plain = self._policy is None and mix == "none"
        # an image that is mixed with one of another process needs that one, too
        self._with_previous = ranks().count > 1 and mix != "none"
        # random resized crops are of the images as they are, so that they lose no detail
        self._uncut = placed(data.x_train, None, images.device) if augment == "random_resized_crop" else None
        side = self._largest if self._uncut is None else max(data.x_train.shape[2:])
        self._window = 1 if self._policy is None else window_length(size, data.channels * side * side)
        self._order: tuple[tuple[int, int], Tensor] | None = None
        self._drawn: tuple[tuple[int, int, int], Mapping[int, Tensor]] | None = None

    def batch(self, stage: int, step: int) -> Batch:
        """The batch of a step: every image once an epoch, in an order that follows from seed, stage and epoch."""
        epoch, place = divmod(step, self.per_epoch)
        whole = self._rows(stage, epoch)[place]
        images = self.images
        part = len(share(whole)) / len(whole)
        if self._plain:
            mine = share(whole)
            labels = images.labels[mine.to(images.device)]
            return Batch(labels, part, lambda size: images.inputs(self._moved(stage, step, whole, mine, size), size))
        pixels, labels = self._made(stage, epoch, place), images.labels[self._mine(whole).to(images.device)]
        mixed, labels = self._mixed(images.inputs(pixels, self._largest), labels, _seed(self._seed, stage, step, 2))
        if self._with_previous:
            mixed, labels = mixed[1:], labels[1:]
        return Batch(labels, part, lambda size: _shrunk(mixed, size))

    def _rows(self, stage: int, epoch: int) -> tuple[Tensor, ...]:
        """The images of an epoch's batches."""
        if self._order is None or self._order[0] != (stage, epoch):
            generator = torch.Generator().manual_seed(_seed(self._seed, stage, epoch, 0))
            self._order = (stage, epoch), torch.randperm(self.images.count, generator=generator)
        return self._order[1].tensor_split(self.per_epoch)

    def _mine(self, whole: Tensor) -> Tensor:
        """This process's share, after the one before it where that is needed."""
        if not self._with_previous:
            return share(whole)
        return torch.cat([share(whole.roll(1, 0))[:1], share(whole)])

    def _moved(self, stage: int, step: int, whole: Tensor, mine: Tensor, size: int) -> Tensor:
        """The images of `mine` at a size, after our own moves."""
        pixels = self.images.at(size, mine)
        if self._moves == "none":
            return pixels
        generator = torch.Generator().manual_seed(_seed(self._seed, stage, step, 1))
        moves = self._mine(draw_moves(self._moves, len(whole), size, generator))
        return move(pixels, moves.to(pixels.device))

    def _made(self, stage: int, epoch: int, place: int) -> Tensor:
        """The images of a batch at the largest resolution, those of the batches that share its draws being kept."""
        window, rows = place // self._window, self._rows(stage, epoch)
        if self._drawn is None or self._drawn[0] != (stage, epoch, window):
            first = window * self._window
            places = range(first, min(first + self._window, self.per_epoch))
            images = [self._before(stage, epoch * self.per_epoch + each, rows[each]) for each in places]
            if self._policy is not None:
                rng = np.random.default_rng((self._seed, stage, epoch, window, 3))
                # batches differ by one image at most, and the first of an epoch are the larger ones
                seeds = rng.integers(2**62, size=len(rows[first])).tolist()
                numbers = [self._mine(torch.arange(len(rows[each]))) for each in places]
                images = augmented(self._policy, images, numbers, seeds)
            self._drawn = (stage, epoch, window), dict(zip(places, images, strict=True))
        return self._drawn[1][place]

    def _before(self, stage: int, step: int, whole: Tensor) -> Tensor:
        """What a policy begins with: images after our own moves, or as they are."""
        mine = self._mine(whole)
        if self._uncut is None:
            return self._moved(stage, step, whole, mine, self._largest)
        return self._uncut[mine.to(self._uncut.device)].to(self.images.device)


def _shrunk(inputs: Tensor, size: int) -> Tensor:
    if inputs.shape[-1] == size:
        return inputs
    return interpolate(inputs, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])
