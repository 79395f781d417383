"""What the modules of a network give, seen in one forward of a batch."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakIdKeyDictionary

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.preserved import preserved, use_batch_statistics


def watch_outputs(module: nn.Module, images: Tensor, saw: Callable[[nn.Module, Tensor], None]) -> None:
    """Show `saw` every module of a network and each tensor that it gives, before another module can change it in place.

    A tensor is shown once: a container gives what its last part gave, an identity what it was given. Batch
    normalisation uses the statistics of the batch. images: (n, c, h, w) float.
    Raises DegenerateNetworkError if these statistics are those of a single value.
    """
    shown: MutableMapping[Tensor, int] = WeakIdKeyDictionary()  # tensor -> its version, counted up by changes in place

    def check_input(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and inputs[0].numel() == inputs[0].shape[1]:
            raise DegenerateNetworkError("batch normalisation of a single value: give more or larger images")

    def saw_output(part: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or shown.get(output) == output._version:
            return
        shown[output] = output._version
        saw(part, output)

    with preserved(module) as hooks, torch.no_grad():  # inference tensors have no version
        use_batch_statistics(module)
        for part in module.modules():
            hooks.append(part.register_forward_hook(saw_output))
            if isinstance(part, _BatchNorm):
                hooks.append(part.register_forward_pre_hook(check_input))
        module(images)
