"""More filters for a convolution; the function stays (LEMONADE, section 3.1, type II; Net2Net, arXiv 1511.05641).

New filters either copy old ones, and whoever reads them shares the old weights among the copies in uneven random parts
(Net2Net's widening; the parts break the symmetry that its authors break with noise), or are fresh, and whoever reads
them has zeros for them (the paper's type II). Through batch normalisation and depthwise convolutions the copies go on.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn

from hwnas.errors import SpaceError
from hwnas.train.morphisms.chain import carried_on, convolution, in_segments, index_of, new_filters, reader_groups
from hwnas.train.morphisms.views import grown_source, selection


def widen(
    chain: nn.Sequential, name: str, out_channels: int, *, copies: bool = True, generator: torch.Generator
) -> nn.Sequential:
    """A chain of single layers that computes the same, in which the convolution `name` has `out_channels` filters.

    Where it or the convolution that reads it has groups, the new filters are spread evenly over the groups of both.
    Raises SpaceError if that cannot be, or nothing in the chain reads the convolution.
    """
    conv, place = convolution(chain, name), index_of(chain, name)
    segments = math.lcm(conv.groups, reader_groups(chain, place))
    if out_channels <= conv.out_channels or out_channels % segments or conv.out_channels % segments:
        raise SpaceError(
            f"layer {name!r} has {conv.out_channels} filters; wider is more than these and a multiple of {segments} "
            f"(groups of it and of its reader), got {out_channels}"
        )
    old, new = conv.out_channels // segments, out_channels // segments
    picked = [grown_source(old, new, copies, generator) for _ in range(segments)]
    source = in_segments(conv.out_channels, segments, picked)
    head = OrderedDict(list(chain.named_children())[:place])
    head[name] = new_filters(conv, source, conv.groups)
    return carried_on(chain, place + 1, selection(source, conv.out_channels, generator), head)
