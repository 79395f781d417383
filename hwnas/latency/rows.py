"""From the nodes of profiled networks to the blocks that they belong to."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from hwnas.errors import PredictorError
from hwnas.graphs.plain import block_index
from hwnas.latency.index import BlockIndex
from hwnas.space import IntMatrix
from hwprof.table import Row
from hwprof.timing import robust_spread


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
    return {
        key: Row(statistics.median(values), min(robust_spread(values), 1.0), len(values))
        for key, values in _occurrences(index, archs, times, SMALLEST_MS).items()
    }


def node_counts(
    index: BlockIndex, archs: IntMatrix, profiles: Iterable[Sequence[tuple[str, float]]]
) -> dict[str, float]:
    """Block key -> number of nodes that the runtime makes of it (median), given each network's (name, time) nodes."""
    counts = (position_times([(name, 1.0) for name, _ in nodes]) for nodes in profiles)
    return {key: statistics.median(values) for key, values in _occurrences(index, archs, counts, 0.0).items()}


def _occurrences(
    index: BlockIndex, archs: IntMatrix, placed: Iterable[dict[int, float]], least: float
) -> dict[str, list[float]]:
    occurrences: dict[str, list[float]] = defaultdict(list)
    for numbers, values in zip(index.numbers(archs), placed, strict=True):
        for position, number in enumerate(numbers):
            if number >= 0:
                occurrences[index.keys[number]].append(max(values.get(position, 0.0), least))
    return occurrences


SMALLEST_MS = 1e-6
