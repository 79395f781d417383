"""The augmentations of torchvision, on uint8 batches where the training is.

RandAugment (Cubuk et al. 2020, arXiv 1909.13719), TrivialAugment (Mueller & Hutter 2021, arXiv 2103.10158),
AutoAugment's policy for ImageNet (Cubuk et al. 2019, arXiv 1805.09501) and the random resized crop, all with
torchvision's settings; what comes in at a border has the mean colour. All mirror half of the images, and the first
three come after our own crop. They are meant for natural images.

A transform of torchvision draws once per call, and a call on a small image is all overhead. So a call takes the images
that have the same place in several batches: within a batch every image has a draw of its own, and a draw serves as many
images as a window has batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from hwnas.errors import DataError
from hwnas.train.augment import Augment

Policy = Literal["random_resized_crop", "randaugment", "trivialaugment", "autoaugment"]
Augmentation = Literal[Augment, Policy]

WINDOW = 16  # batches whose images share their draws; with all of WINDOW_BYTES at most
WINDOW_BYTES = 64 * 2**20


def moves_before(kind: Augmentation) -> Augment:
    """The moves of `augment.py` that an image makes first."""
    if kind == "none" or kind == "crop" or kind == "crop_flip":
        return kind
    return "none" if kind == "random_resized_crop" else "crop_flip"


def policy(kind: Augmentation, size: int, mean: Sequence[float]) -> Callable[[Tensor], Tensor] | None:
    """What torchvision does under this name to (n, channels, height, width) uint8 images; None for our own moves.

    `mean` is that of each channel, pixels in [0, 1]. Raises DataError if there are not 1 or 3 channels, and the kind
    works with colours.
    """
    if kind in get_args(Augment):
        return None
    from torchvision.transforms import v2

    if kind == "random_resized_crop":
        chosen = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
    else:
        if len(mean) not in (1, 3):
            raise DataError(
                f'augment = "{kind}" works with colours, and the images have {len(mean)} channels, neither 1 nor 3; '
                'take "crop", "crop_flip" or "random_resized_crop"'
            )
        kinds = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide, "autoaugment": v2.AutoAugment}
        chosen = kinds[kind](fill=[round(255 * value) for value in mean])
    transform: Callable[[Tensor], Tensor] = chosen
    return transform


def window_length(batch_size: int, image_bytes: int) -> int:
    """How many batches share their draws."""
    return max(1, min(WINDOW, WINDOW_BYTES // (batch_size * image_bytes)))


def augmented(
    transform: Callable[[Tensor], Tensor], batches: Sequence[Tensor], places: Sequence[Tensor], seeds: Sequence[int]
) -> list[Tensor]:
    """The images of each of `batches`, transformed with the draw of seeds[place], `places` being (n,) int64 of each."""
    images, place = torch.cat(list(batches)), torch.cat(list(places))
    order = place.argsort(stable=True)
    found, counts = torch.unique(place, return_counts=True)
    groups = torch.split(images[order.to(images.device)], counts.tolist())
    made = []
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's generator of the CPU
        for number, group in zip(found.tolist(), groups, strict=True):
            torch.default_generator.manual_seed(seeds[number])
            made.append(transform(group))
    return list(torch.split(torch.cat(made)[order.argsort().to(images.device)], [len(batch) for batch in batches]))
