"""Which rows of a foreign table cannot be true: far from what other blocks with about as much work take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from hwnas.blocks import Block

NEIGHBOURS = 15
# Published tables stay within 5 times of their neighbours; a wrong unit or a slipped digit is far beyond.
LARGEST_FACTOR = 50.0
LONGEST_MS = 10_000.0


def absurd(rows_ms: Mapping[str, float], blocks: Mapping[str, Block]) -> dict[str, str]:
    """Key -> what is wrong with its time, given ms by key and the block of each key that is one of ours.

    A block is compared with the median of the NEIGHBOURS nearest in multiply-accumulates, in proportion to them.
    """
    wrong = {
        key: f"{ms:.4g} ms for one block; are these microseconds (--unit us), or no times at all?"
        for key, ms in rows_ms.items()
        if ms > LONGEST_MS
    }
    ordered = sorted((math.log(block.macs), key) for key, block in blocks.items() if block.macs)
    for place, (own, key) in enumerate(ordered):
        window = ordered[max(0, place - NEIGHBOURS) : place] + ordered[place + 1 : place + 1 + NEIGHBOURS]
        near = sorted((abs(macs - own), rows_ms[other] * math.exp(own - macs)) for macs, other in window)
        if len(near) < 3:
            continue
        factor = rows_ms[key] / statistics.median(ms for _, ms in near[:NEIGHBOURS])
        if not 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR:
            wrong.setdefault(key, f"{rows_ms[key]:.4g} ms, {factor:.2g} times what blocks of as much work take")
    return wrong
