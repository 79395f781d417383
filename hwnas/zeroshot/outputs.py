"""What the modules of a network give, seen in one forward of a batch."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from hwnas.zeroshot.preserved import preserved, refuse_single_values, use_batch_statistics


def watch_outputs(module: nn.Module, images: Tensor, saw: Callable[[nn.Module, Tensor], None]) -> None:
    """Show `saw` every module of a network and each tensor that it gives, before another module can change it in place.

    A tensor is shown once, and the images are not: a container gives what its last part gave, an identity what it was
    given. Batch normalisation uses the statistics of the batch. images: (n, c, h, w) float.
    Raises DegenerateNetworkError if these statistics are those of a single value.
    """
    shown: MutableMapping[Tensor, int] = WeakIdKeyDictionary()  # tensor -> its version, counted up by changes in place
    shown[images] = images._version

    def saw_output(part: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or shown.get(output) == output._version:
            return
        shown[output] = output._version
        saw(part, output)

    with preserved(module) as hooks, torch.no_grad():  # inference tensors have no version
        use_batch_statistics(module)
        hooks += refuse_single_values(module)
        hooks += [part.register_forward_hook(saw_output) for part in module.modules()]
        module(images)


def gives_channels_last(part: nn.Module) -> bool:
    """Whether a layer's channels are the last axis of what it gives, whereas convolutions have them second."""
    return isinstance(part, nn.Linear) or type(part) is nn.LayerNorm  # subclasses of this are often for (n, c, h, w)
