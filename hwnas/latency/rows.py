"""From measured nodes and whole networks to the rows, the correction and the validation of a latency table."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import PredictorError
from hwnas.latency.graph import block_index
from hwnas.latency.index import BlockIndex
from hwnas.space import IntMatrix
from hwprof.table import Row
from hwprof.timing import robust_spread

FloatVector = NDArray[np.float64]


def position_times(nodes: Sequence[tuple[str, float]]) -> dict[int, float]:
    """Position -> summed time of its nodes, given (name, time) in execution order.

    A node that the runtime added itself (a change of memory layout, say) belongs to the block it follows.
    """
    owners = [block_index(name) for name, _ in nodes]
    owner = next((number for number in owners if number is not None), None)
    if owner is None:
        raise PredictorError(f"none of the {len(nodes)} profiled nodes can be given to a block, e.g. {nodes[:1]}")
    times: dict[int, float] = defaultdict(float)
    for number, (_, time) in zip(owners, nodes, strict=True):
        owner = owner if number is None else number
        times[owner] += time
    return dict(times)


def measured_rows(index: BlockIndex, archs: IntMatrix, times: Iterable[dict[int, float]]) -> dict[str, Row]:
    """Rows of the blocks that occur in profiled networks; `times` gives ms per position, one for each of `archs`.

    A block that a runtime leaves without any node (all its work fused away) costs nothing and gets the smallest time.
    """
    occurrences: dict[str, list[float]] = defaultdict(list)
    for numbers, placed in zip(index.numbers(archs), times, strict=True):
        for position, number in enumerate(numbers):
            if number >= 0:
                occurrences[index.keys[number]].append(max(placed.get(position, 0.0), SMALLEST_MS))
    return {
        key: Row(statistics.median(values), min(robust_spread(values), 1.0), len(values))
        for key, values in occurrences.items()
    }


SMALLEST_MS = 1e-6


def fit_correction(sums_ms: FloatVector, measured_ms: FloatVector) -> tuple[float, float]:
    """(slope, intercept_ms) of measured = intercept + slope * sum, least squares of the relative error.

    With fewer than three networks, or networks too alike to tell a slope, only the slope is fitted.
    """
    if len(sums_ms) == 0:
        raise PredictorError("no whole network was measured, so sums of profiled blocks cannot be corrected")
    relative = sums_ms / measured_ms
    design = np.stack([relative, 1 / measured_ms], axis=1)
    if len(sums_ms) >= 3 and np.ptp(sums_ms) > 0.1 * sums_ms.mean():
        slope, intercept = np.linalg.lstsq(design, np.ones(len(sums_ms)), rcond=None)[0]
        if slope > 0:
            return float(slope), float(intercept)
    return float(relative.sum() / (relative @ relative)), 0.0
