"""Normalisation as a part of the network: the file then takes the pixels themselves, 0 to 255."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn


def with_normalisation(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The module behind (x / 255 - mean) / std per channel: (n, channels, height, width) float of 0..255 -> logits.

    `mean` and `std` are those of pixels in [0, 1]. It is a batch normalisation without weights, which every format has;
    padding keeps it from being folded into the first convolution.
    """
    first = nn.BatchNorm2d(len(mean), eps=0.0, affine=False)
    assert first.running_mean is not None
    assert first.running_var is not None
    first.running_mean.copy_(torch.tensor(mean) * 255)
    first.running_var.copy_((torch.tensor(std) * 255) ** 2)
    return nn.Sequential(OrderedDict(normalise=first, network=module)).train(module.training)
