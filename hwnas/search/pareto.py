"""Pareto fronts, exactly. Everything here is minimised; `problem.to_losses` is where senses are turned.

A row dominates another if it is nowhere worse and somewhere better. Equal rows do not dominate each other, so copies
of a nondominated row are all nondominated. A row with a NaN is on no front and encloses no volume.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

from hwnas.search.problem import BoolVector, FloatMatrix, FloatVector

_BLOCK = 256  # rows compared at once with the whole front: small enough for the cache, large enough for NumPy


def nondominated(losses: FloatMatrix) -> BoolVector:
    """(n, m) losses -> (n,) bool, true on the Pareto front. n log n for m <= 2, n times front size beyond."""
    losses = _matrix(losses)
    mask = np.zeros(len(losses), dtype=np.bool_)
    rows = np.flatnonzero(~np.isnan(losses).any(axis=1))
    points, group = _distinct(losses[rows])
    mask[rows] = _distinct_front(points)[group]
    return mask


def nondominated_ranks(losses: FloatMatrix) -> NDArray[np.int64]:
    """(n, m) losses -> (n,) 0 on the front, 1 on the front of what is left, and so on; rows with NaN come last."""
    losses = _matrix(losses)
    rows = np.flatnonzero(~np.isnan(losses).any(axis=1))
    points, group = _distinct(losses[rows])
    levels = _ranks_2d(points) if losses.shape[1] == 2 else _ranks_by_peeling(points)
    ranks = np.full(len(losses), levels.max(initial=-1) + 1, dtype=np.int64)
    ranks[rows] = levels[group]
    return ranks


def crowding_distance(losses: FloatMatrix, ranks: NDArray[np.int64] | None = None) -> FloatVector:
    """(n, m) finite losses -> (n,) how far the neighbours are; infinite at the ends of each objective.

    With `ranks` (n,), neighbours are looked for among rows of the same rank. Deb et al. 2002, section III-B.
    """
    losses = _matrix(losses)
    distance = np.zeros(len(losses))
    if not len(losses):
        return distance
    ranks = np.zeros(len(losses), dtype=np.int64) if ranks is None else ranks
    for column in losses.T:
        order = np.lexsort((column, ranks))
        ordered, groups = column[order], ranks[order]
        first = np.ones(len(order), dtype=np.bool_)
        first[1:] = groups[1:] != groups[:-1]
        last = np.append(first[1:], True)
        extent = (ordered[last] - ordered[first])[np.cumsum(first) - 1]
        gap = np.zeros(len(order))
        gap[1:-1] = ordered[2:] - ordered[:-2]
        share = np.divide(gap, extent, out=np.zeros_like(gap), where=extent > 0)
        share[first | last] = np.inf
        distance[order] += share
    return distance


def hypervolume(losses: FloatMatrix, reference: FloatVector) -> float:
    """Volume between (n, m) losses and a (m,) reference that is worse than them; rows not better than it add nothing.

    Exact: a sweep for 2 and 3 objectives (n log n in practice), slicing down to 3 beyond (While et al. 2006), which is
    exponential in m and meant for fronts of some hundred rows. Raises ValueError if a reference is not finite or a loss
    is -inf.
    """
    losses, reference = _matrix(losses), np.asarray(reference, dtype=np.float64)
    if reference.shape != (losses.shape[1],) or not np.isfinite(reference).all():
        raise ValueError(f"the reference of {losses.shape[1]} objectives is as many finite numbers, got {reference}")
    inside = losses[(losses < reference).all(axis=1)]
    if np.isneginf(inside).any():
        raise ValueError("a loss of -inf encloses an infinite hypervolume; drop such rows")
    return _volume(inside - reference)


def _matrix(losses: FloatMatrix) -> FloatMatrix:
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 2 or losses.shape[1] == 0:
        raise ValueError(f"losses must be (n, objectives), got shape {losses.shape}")
    return losses


def _distinct(points: FloatMatrix) -> tuple[FloatMatrix, NDArray[np.int64]]:
    """The distinct rows in lexicographic order, and for each given row its index among them."""
    order = np.lexsort(points.T[::-1])
    ordered = points[order]
    new = np.ones(len(points), dtype=np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    group = np.empty(len(points), dtype=np.int64)
    group[order] = np.cumsum(new) - 1
    return ordered[new], group


def _distinct_front(points: FloatMatrix) -> BoolVector:
    """`nondominated` of distinct rows in lexicographic order: only an earlier row can dominate a later one."""
    mask = np.zeros(len(points), dtype=np.bool_)
    if points.shape[1] == 1:
        mask[:1] = True
        return mask
    if points.shape[1] == 2:
        mask[:1] = True
        mask[1:] = points[1:, 1] < np.minimum.accumulate(points[:-1, 1])
        return mask
    front = points[:0]
    for start in range(0, len(points), _BLOCK):
        alive = np.arange(start, min(start + _BLOCK, len(points)))
        alive = alive[~_covered(points[alive], front)]
        alive = alive[~_covered(points[alive], points[alive], itself=True)]
        mask[alive] = True
        front = np.concatenate([front, points[alive]])
    return mask


def _covered(points: FloatMatrix, others: FloatMatrix, itself: bool = False) -> BoolVector:
    """(n,) whether some other row is nowhere worse; `itself`: the two are the same rows, which cover themselves."""
    covers = np.ones((len(others), len(points)), dtype=np.bool_)
    for column in range(points.shape[1]):
        covers &= others[:, column, None] <= points[None, :, column]
    if itself:
        np.fill_diagonal(covers, False)
    covered: BoolVector = np.logical_or.reduce(covers, axis=0)
    return covered


def _ranks_2d(points: FloatMatrix) -> NDArray[np.int64]:
    """Ranks of distinct rows in lexicographic order, in one sweep (Jensen 2003).

    Along the sweep the lowest second losses of the fronts are increasing, and a row belongs to the first front none of
    whose rows is as low as it.
    """
    lowest: list[float] = []
    ranks = np.empty(len(points), dtype=np.int64)
    for row, second in enumerate(points[:, 1].tolist()):
        rank = bisect_right(lowest, second)
        ranks[row] = rank
        lowest[rank : rank + 1] = [second]
    return ranks


def _ranks_by_peeling(points: FloatMatrix) -> NDArray[np.int64]:
    ranks = np.zeros(len(points), dtype=np.int64)
    if points.shape[1] == 1:
        return np.arange(len(points), dtype=np.int64)
    left, rank = np.arange(len(points)), 0
    while len(left):
        front = _distinct_front(points[left])
        ranks[left[front]] = rank
        left, rank = left[~front], rank + 1
    return ranks


def _volume(points: FloatMatrix) -> float:
    """Volume between (n, m) negative rows and the origin."""
    points = _distinct(points)[0]
    points = points[_distinct_front(points)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(-points[0, 0])
    if points.shape[1] == 2:
        return float(points[:, 0] @ np.diff(points[:, 1], prepend=0.0))
    points = points[np.argsort(points[:, -1], kind="stable")]
    depths = np.diff(points[:, -1], append=0.0)
    if points.shape[1] == 3:
        return float(_staircase_areas(points) @ depths)
    slabs = [_volume(points[: stop + 1, :-1]) * depth for stop, depth in enumerate(depths.tolist()) if depth > 0]
    return float(sum(slabs))


def _staircase_areas(points: FloatMatrix) -> FloatVector:
    """(n, 3) negative rows -> (n,) area that the first two losses of rows 0..i enclose with the origin."""
    xs, ys = [-np.inf, 0.0], [0.0, -np.inf]  # the staircase: xs ascending, ys descending, with sentinels
    area, areas = 0.0, np.empty(len(points))
    for row, (x, y) in enumerate(points[:, :2].tolist()):
        start = bisect_right(xs, x)
        if ys[start - 1] > y:  # otherwise a step to the left is as low: nothing is gained
            start = bisect_left(xs, x)
            stop = start
            height = ys[start - 1]
            left = x
            while ys[stop] >= y:
                area += (xs[stop] - left) * (height - y)
                left, height = xs[stop], ys[stop]
                stop += 1
            area += (xs[stop] - left) * (height - y)
            xs[start:stop], ys[start:stop] = [x], [y]
        areas[row] = area
    return areas
