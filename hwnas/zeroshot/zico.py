"""ZiCo: how large the gradients of the weights are against their deviation between batches.

Li et al., "ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients", ICLR 2023, arXiv 2301.11300.
The authors take two batches; ours are the two halves of one batch. As in their code, the deviation is that of the
signed gradients (the paper: of their absolutes), weights whose gradients do not deviate are left out, and so are layers
without any other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwnas.zeroshot import DegenerateNetworkError, finite
from hwnas.zeroshot.gradients import differentiable, gradients, mean_loss
from hwnas.zeroshot.probe import Probe


def score(probe: Probe) -> float:
    """ZiCo of the halves of the batch. Needs labels. Raises DegenerateNetworkError with fewer than four images."""
    return probe.shared(_score)


def _score(probe: Probe) -> float:
    every_image = probe.images
    if len(every_image) < 4:
        raise DegenerateNetworkError(f"each half of the batch needs two images, but there are {len(every_image)}")
    (images, more_images), (labels, more_labels) = every_image.tensor_split(2), probe.labels.tensor_split(2)
    return zico(probe.module, images, labels, more_images, more_labels)


def zico(module: nn.Module, images: Tensor, labels: Tensor, more_images: Tensor, more_labels: Tensor) -> float:
    """Sum over layers of log(sum over weights of mean|g| / std g), mean and deviation over two batches.

    images (n, c, h, w) float, labels (n,) int. Two forwards and backwards.
    Raises DegenerateNetworkError if no weight has a gradient that deviates.
    """
    with differentiable(module) as (_, weights):
        first = gradients(mean_loss(module, images, labels), weights)
        second = gradients(mean_loss(module, more_images, more_labels), weights)
    sums = torch.stack([_ratio(a, b) for a, b in zip(first, second, strict=True)])
    if not bool(sums.any()):
        raise DegenerateNetworkError("no weight has a gradient that differs between two batches: the network is dead")
    return finite(float(sums[sums != 0].log().sum()), "zico")


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    # of two numbers the mean of the absolutes is (|a| + |b|) / 2, and the (population) deviation |a - b| / 2
    deviation = (a - b).abs()
    return ((a.abs() + b.abs()) / deviation.where(deviation != 0, torch.inf)).sum()
