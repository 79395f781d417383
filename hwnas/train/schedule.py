"""Optimisers, and the learning rate of every step: linear warm-up, then one cosine cycle down to zero.

The cosine is eq. 5 of Loshchilov & Hutter 2017 (arXiv:1608.03983) with a single cycle and a final rate of 0. A step
takes the rate of its middle, so that neither the first nor the last step is wasted at rate 0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

OptimizerName = Literal["sgd", "adamw"]
# peak learning rate at 64 images a batch, and weight decay
DEFAULTS: dict[OptimizerName, tuple[float, float]] = {"sgd": (0.2, 5e-4), "adamw": (0.01, 0.05)}


def build_optimizer(
    module: nn.Module, name: OptimizerName, weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of a network's trainable weights; vectors (biases, normalisation) are not decayed."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)


def rate_factor(progress: float, warmup: float) -> float:
    """Learning rate relative to its peak when a share `progress` of the training, in [0, 1], is done.

    `warmup` is the share that warms up; at most half of the training does.
    """
    warmup = min(warmup, 0.5)
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def epochs_left(epochs: int, epoch: int, seconds: float, max_seconds: float | None) -> int:
    """Epochs still to train after `epoch` of `epochs` took `seconds`; the last may be cut by the time limit."""
    left = epochs - epoch
    if max_seconds is None or epoch == 0:
        return left
    return max(1, min(left, math.ceil((max_seconds - seconds) / (seconds / epoch))))
