"""Pairs of images of a batch mixed into one, their labels too: torchvision's MixUp and CutMix.

Zhang et al. 2018, arXiv 1710.09412, and Yun et al. 2019, arXiv 1905.04899, with the alphas of torchvision's training
recipes: 0.2 and 1. Every image is mixed with the one before it, the first with the last; one share is drawn per batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Mix = Literal["none", "mixup", "cutmix", "mixup_cutmix"]


def mixer(mix: Mix, num_classes: int) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    """A function (images, labels, seed) -> the same, mixed; "mixup_cutmix" is either, at random.

    Images are (n, channels, height, width) floats; labels are (n,) int64, and (n, num_classes) shares afterwards.
    """
    if mix == "none":
        return lambda images, labels, seed: (images, labels)
    from torchvision.transforms import v2

    kinds = {"mixup": v2.MixUp(alpha=0.2, num_classes=num_classes), "cutmix": v2.CutMix(num_classes=num_classes)}
    chosen = v2.RandomChoice(list(kinds.values())) if mix == "mixup_cutmix" else kinds[mix]

    def mixed(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's generator of the CPU
            torch.default_generator.manual_seed(seed)
            images, labels = chosen(images, labels)
        return images, labels

    return mixed
