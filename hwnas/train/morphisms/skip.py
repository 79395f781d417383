"""A skip around a layer, in and out (LEMONADE, section 3.1, network morphisms of types II and III, and section 3.2).

    convex   y = (1 - lambda) f(x) + lambda x with a learnable lambda, 0 at first: the layer alone. x keeps its shape.
    concat   y = [f(x), x]; whoever reads y has zeros for x at first.

Taking a convex skip out is approximate: what is left is the layer, scaled by (1 - lambda).
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import nn

from hwnas.errors import SpaceError
from hwnas.spaces.morph_blocks import ConcatSkip, ConvexSkip
from hwnas.train.morphisms.chain import carried_on, convolution, index_of
from hwnas.train.morphisms.views import View


def convex_skip(chain: nn.Sequential, first: str, last: str) -> nn.Sequential:
    """A chain that computes the same, with a convex skip around the layers from `first` to `last`, named `first`_skip.

    Layers are shared with the given chain. `last` must be a ReLU. Raises SpaceError if it is not, or the layers do not
    keep the number of channels.
    """
    begin, end, layers = _span(chain, first, last)
    inside = nn.Sequential(OrderedDict(layers[begin : end + 1]))
    entering, leaving = _channels(chain, begin, end)
    if entering != leaving:
        raise SpaceError(f"a convex skip needs equal channels; {first!r} reads {entering}, {last!r} gives {leaving}")
    skip = (f"{first}_skip", ConvexSkip(inside, mix=0.0))
    return nn.Sequential(OrderedDict([*layers[:begin], skip, *layers[end + 1 :]]))


def concat_skip(chain: nn.Sequential, first: str, last: str) -> nn.Sequential:
    """A chain that computes the same, with a skip by concatenation around `first` to `last`, named `first`_skip.

    What follows must keep channels apart until a convolution without groups or a linear layer reads them; batch
    normalisation there has fresh values for the new channels. Raises SpaceError if nothing reads them.
    """
    begin, end, layers = _span(chain, first, last)
    entering, leaving = _channels(chain, begin, end)
    kernel = torch.eye(leaving, leaving + entering, dtype=torch.float64)[:, :, None, None]
    source = torch.cat([torch.arange(leaving), torch.full((entering,), -1)])
    view = View(kernel, source, torch.zeros(leaving, dtype=torch.float64))
    inside = nn.Sequential(OrderedDict((name, copy.deepcopy(layer)) for name, layer in layers[begin : end + 1]))
    head = OrderedDict[str, nn.Module](layers[:begin])
    head[f"{first}_skip"] = ConcatSkip(inside)
    return carried_on(chain, end + 1, view, head)


def without_skip(skip: ConvexSkip) -> nn.Module:
    """The layer alone, an approximation: its last batch normalisation takes the factor 1 - lambda, at least 0.

    Raises SpaceError if the layer does not end with a batch normalisation and ReLU.
    """
    layer = copy.deepcopy(skip.layer)
    parts = list(layer.children())
    if len(parts) < 2 or not isinstance(parts[-2], nn.BatchNorm2d) or not isinstance(parts[-1], nn.ReLU):
        raise SpaceError(
            f"a skip can be taken out around layers that end with batch normalisation and ReLU, got {layer}"
        )
    with torch.no_grad():
        for parameter in (parts[-2].weight, parts[-2].bias):
            parameter.mul_((1 - skip.mix).clamp(min=0))
    return layer


def _span(chain: nn.Sequential, first: str, last: str) -> tuple[int, int, list[tuple[str, nn.Module]]]:
    begin, end, layers = index_of(chain, first), index_of(chain, last), list(chain.named_children())
    convolution(chain, first)
    if end <= begin or not isinstance(layers[end][1], nn.ReLU):
        raise SpaceError(f"a skip goes around a convolution to a later ReLU, got {first!r} to {last!r}")
    return begin, end, layers


def _channels(chain: nn.Sequential, begin: int, end: int) -> tuple[int, int]:
    convs = [layer for layer in list(chain)[begin : end + 1] if isinstance(layer, nn.Conv2d)]
    return convs[0].in_channels, convs[-1].out_channels
