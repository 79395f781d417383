"""Which layers of a parent are which of its child: the cheapest edit of one stage's layers into the other's.

Dynamic programming over pairs of layers, as for two texts. What a morphism can do exactly costs little, what it cannot
costs much, so that an exact way is found wherever there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from hwnas.spaces.morph_blocks import CONCAT, CONVEX, NONE, MorphBlock

_INSERTED, _INEXACT, _REMOVED = 1.5, 12.0, 14.0


@dataclass(frozen=True)
class Pair:
    """A layer of the parent that goes on as one of the child; None for one that is removed, or inserted."""

    parent: int | None
    child: int | None


def aligned(parents: Sequence[MorphBlock], children: Sequence[MorphBlock]) -> list[Pair]:
    """The layers of a stage, each once, in an order in which the child can be made."""
    best: dict[tuple[int, int], tuple[float, tuple[Pair, ...]]] = {(0, 0): (0.0, ())}
    for p in range(len(parents) + 1):
        for c in range(len(children) + 1):
            options = []
            if p and c:
                cost, way = best[p - 1, c - 1]
                options.append((cost + _changed(parents[p - 1], children[c - 1]), (*way, Pair(p - 1, c - 1))))
            if c:
                cost, way = best[p, c - 1]
                options.append((cost + _inserted(children[c - 1]), (*way, Pair(None, c - 1))))
            if p:
                cost, way = best[p - 1, c]
                options.append((cost + _REMOVED, (*way, Pair(p - 1, None))))
            if options:
                best[p, c] = min(options, key=lambda option: option[0])
    return list(best[len(parents), len(children)][1])


def _inserted(child: MorphBlock) -> float:
    identity = child.skip == CONCAT or child.out_channels >= child.in_channels
    return _INSERTED if identity else _INEXACT


def _changed(parent: MorphBlock, child: MorphBlock) -> float:
    cost = 1.0 * (child.kernel != parent.kernel) + 9.0 * (child.kernel < parent.kernel)
    cost += 1.0 * (child.separable != parent.separable) + 9.0 * (child.separable and not parent.separable)
    represented = parent.filters
    if parent.skip != child.skip:
        cost += 1.0
        if parent.skip == CONCAT and not child.separable:
            represented = parent.out_channels  # the input as filters of identity
        elif parent.skip == CONCAT or (parent.skip == CONVEX and child.skip == NONE):
            cost += 9.0
    if child.filters < represented:
        cost += 8.0
    return cost + 0.5 * abs(log2(child.out_channels / parent.out_channels))
