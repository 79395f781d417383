"""Pareto fronts, exactly. Everything here is minimised; `problem.to_losses` is where senses are turned.

A row dominates another if it is nowhere worse and somewhere better. Equal rows do not dominate each other, so copies
of a nondominated row are all nondominated. A row with a NaN is on no front and encloses no volume.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

from hwnas.search.problem import BoolVector, FloatMatrix, FloatVector

_CELLS = 1_000_000  # numbers in memory at once where every candidate meets every row of a front
_BLOCK = 256  # rows compared at once with the whole front: small enough for the cache, large enough for NumPy


def nondominated(losses: FloatMatrix) -> BoolVector:
    """(n, m) losses -> (n,) bool, true on the Pareto front. n log n for m <= 3, n times front size beyond."""
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
    ranked = {2: _ranks_2d, 3: _ranks_3d}.get(losses.shape[1], _ranks_by_peeling)
    levels = ranked(points)
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


def hypervolume_improvement(candidates: FloatMatrix, front: FloatMatrix, reference: FloatVector) -> FloatVector:
    """(n, m) losses -> (n,) volume that each alone would add to that between (k, m) `front` and (m,) `reference`.

    Exact. For 2 objectives one pass over n times k numbers; for more, one hypervolume of the front a candidate: the box
    of a candidate less the part of it that the front covers. Rows with a NaN add nothing. Raises ValueError if shapes
    differ, a reference is not finite or a loss is -inf.
    """
    candidates, front = _matrix(candidates), _matrix(front)
    reference = np.asarray(reference, dtype=np.float64)
    if candidates.shape[1] != front.shape[1]:
        raise ValueError(f"candidates of {candidates.shape[1]} objectives and a front of {front.shape[1]} do not fit")
    hypervolume(front, reference)  # refuses what has no volume
    if np.isneginf(candidates).any():
        raise ValueError("a loss of -inf adds an infinite hypervolume; drop such candidates")
    inside = np.flatnonzero((candidates < reference).all(axis=1))
    gains = np.zeros(len(candidates))
    front = front[nondominated(front) & (front < reference).all(axis=1)]
    if candidates.shape[1] == 2:
        rows = max(1, _CELLS // (len(front) + 1))
        for chunk in np.split(inside, range(rows, len(inside), rows)):
            gains[chunk] = _areas_added(candidates[chunk], front, reference)
    else:
        for row in inside.tolist():
            box = float(np.prod(reference - candidates[row]))
            gains[row] = max(box - hypervolume(np.maximum(front, candidates[row]), reference), 0.0)
    return gains


def _areas_added(candidates: FloatMatrix, front: FloatMatrix, reference: FloatVector) -> FloatVector:
    """(n, 2) -> (n,): the staircase of the front as columns, each cut at the candidate's left and lower side."""
    steps = front[np.lexsort(front.T[::-1])]
    lefts = np.append(-np.inf, steps[:, 0])
    rights = np.append(steps[:, 0], reference[0])
    tops = np.append(reference[1], steps[:, 1])
    widths = np.maximum(rights - np.maximum(lefts, candidates[:, :1]), 0.0)
    heights = np.maximum(tops - candidates[:, 1:], 0.0)
    return np.asarray(np.einsum("nk,nk->n", widths, heights))


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
    if points.shape[1] == 3:
        front_only = _Staircase()
        return np.array([front_only.take(y, z) for y, z in points[:, 1:].tolist()], dtype=np.bool_)
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


class _Staircase:
    """The second and third losses of a front of rows that come by ascending first loss: ys ascending, zs descending."""

    def __init__(self) -> None:
        self.ys: list[float] = []
        self.zs: list[float] = []

    def covers(self, y: float, z: float) -> bool:
        """Whether some row taken so far is nowhere worse."""
        below = bisect_right(self.ys, y)
        return below > 0 and self.zs[below - 1] <= z

    def take(self, y: float, z: float) -> bool:
        """Take a row unless it is covered; what it covers itself will not be needed again."""
        if self.covers(y, z):
            return False
        start = stop = bisect_left(self.ys, y)
        while stop < len(self.zs) and self.zs[stop] >= z:
            stop += 1
        self.ys[start:stop], self.zs[start:stop] = [y], [z]
        return True


def _ranks_3d(points: FloatMatrix) -> NDArray[np.int64]:
    """Ranks of distinct rows in lexicographic order: each joins the first front that has no row as good as it.

    A row covered by a front is covered by every front before it, so a binary search finds the first that does not
    (Zhang et al. 2015, "An efficient approach to nondominated sorting", ENS-BS).
    """
    fronts: list[_Staircase] = []
    ranks = np.empty(len(points), dtype=np.int64)
    for row, (y, z) in enumerate(points[:, 1:].tolist()):
        low, high = 0, len(fronts)
        while low < high:
            middle = (low + high) // 2
            if fronts[middle].covers(y, z):
                low = middle + 1
            else:
                high = middle
        if low == len(fronts):
            fronts.append(_Staircase())
        fronts[low].take(y, z)
        ranks[row] = low
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
