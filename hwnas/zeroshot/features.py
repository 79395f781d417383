"""The feature map that global average pooling is given, found in a network whose code we do not know."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.preserved import preserved

_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d)
_SHRINKING = (nn.Conv2d, nn.MaxPool2d)


def pooled_features(module: nn.Module, images: Tensor) -> Tensor:
    """(n, c, h, w) features before global pooling, in one forward of (n, c, h, w) images in the module's own mode.

    It is the input of the last pooling module, unless maps of more than one pixel follow: then that one is part of a
    block (squeeze-and-excitation, a cell), global pooling is a function call, and it is given the last map. Outputs of
    containers count: they are what a residual block gives after its addition. What follows a map of one pixel counts
    only if a layer made it one, since behind global pooling the classifier begins.
    Raises DegenerateNetworkError if there is no 4-D map at all.
    """
    pool_input: Tensor | None = None
    pool_output: Tensor | None = None
    last_map: Tensor | None = None
    map_follows = False

    def saw_output(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal pool_input, pool_output, last_map, map_follows
        if isinstance(part, _POOLING) and inputs:
            pool_input, pool_output, map_follows = inputs[0], output, False
        elif isinstance(output, Tensor) and output.dim() == 4 and output is not pool_output:
            if _pixels(output) > 1:
                last_map, map_follows = output, True
            elif last_map is None or _pixels(last_map) == 1 or (isinstance(part, _SHRINKING) and _pixels(*inputs) > 1):
                last_map = output

    with preserved(module) as hooks:
        hooks += [part.register_forward_hook(saw_output) for part in module.modules()]
        module(images)
    found = last_map if pool_input is None or map_follows else pool_input
    if found is None:
        raise DegenerateNetworkError(f"{type(module).__name__} makes no (n, c, h, w) feature map")
    return found


def _pixels(feature_map: Tensor) -> int:
    return feature_map.shape[-2] * feature_map.shape[-1]
