"""Fewer filters for a convolution: those with the largest L1 norms stay (LEMONADE, section 3.2 and appendix A.1.2).

An approximate morphism. What reads the filters loses the inputs that are gone; beyond the paper, their mean, as batch
normalisation tells it, goes on in the statistics or the bias of the reader.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from hwnas.errors import SpaceError
from hwnas.train.morphisms.chain import carried_on, convolution, in_segments, index_of, new_filters, reader_groups
from hwnas.train.morphisms.views import largest, selection


def prune(chain: nn.Sequential, name: str, out_channels: int) -> nn.Sequential:
    """A chain of single layers in which the convolution `name` keeps `out_channels` of its filters.

    Where it or its reader has groups, each group keeps as many. Raises SpaceError if that cannot be.
    """
    conv, place = convolution(chain, name), index_of(chain, name)
    segments = math.lcm(conv.groups, reader_groups(chain, place))
    if not 0 < out_channels < conv.out_channels or out_channels % segments or conv.out_channels % segments:
        raise SpaceError(
            f"layer {name!r} has {conv.out_channels} filters; it can keep fewer, a positive multiple of {segments} "
            f"(groups of it and of its reader), got {out_channels}"
        )
    norms = conv.weight.detach().abs().sum((1, 2, 3)).chunk(segments)
    source = in_segments(conv.out_channels, segments, [largest(part, out_channels // segments) for part in norms])
    head = OrderedDict(list(chain.named_children())[:place])
    head[name] = new_filters(conv, source, conv.groups)
    return carried_on(chain, place + 1, selection(source, conv.out_channels), head)
