"""The baselines: how large a network is. A score that does not beat them says nothing new."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hwnas.zeroshot.preserved import preserved
from hwnas.zeroshot.probe import Probe


def params(probe: Probe) -> float:
    """Number of weights, those that training changes."""
    return float(sum(parameter.numel() for parameter in probe.module.parameters()))


def layers(probe: Probe) -> float:
    """Number of Conv2d and Linear modules."""
    return float(sum(isinstance(part, nn.Conv2d | nn.Linear) for part in probe.module.modules()))


def macs(probe: Probe) -> float:
    """Multiply-accumulates of one image in the Conv2d and Linear modules, biases not counted."""
    return probe.shared(_macs)


def _macs(probe: Probe) -> float:
    module = probe.module
    total = 0

    def saw_output(layer: nn.Conv2d | nn.Linear, _: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()  # every output is a dot product with one row of weights

    with preserved(module) as hooks, torch.inference_mode():
        module.eval()
        hooks += [
            part.register_forward_hook(saw_output)
            for part in module.modules()
            if isinstance(part, nn.Conv2d | nn.Linear)
        ]
        module(probe.images[:1])
    return float(total)
