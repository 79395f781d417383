"""What one change does, measured at good architectures, and children that make many such changes at once.

Near an architecture the losses of most predictors are close to additive over the slots (a latency table is so by
construction), so the effects of all single changes there foretell which changes go well together: under a weighting of
the objectives, the better options of all slots. One measurement costs as many evaluations as there are neighbours and
serves thousands of children. The model is local: children start from front members and use what was measured near them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwnas.search.archive import Archive, Candidates
from hwnas.search.descent import count_neighbours, neighbours
from hwnas.search.problem import FloatMatrix, FloatVector
from hwnas.space import IntMatrix

_NEVER = 1e30  # the effect of a change that was not measured; finite, so that differences are
_REMEMBERED = 64  # measurements in use; the oldest is overwritten
_JITTER = 0.3  # standard deviation of the logarithm of weights: a child need not move as its parent stands
_NOISE = 0.05  # of the range of the front: members that no weighting makes the best become parents, too


class Effects:
    """The effects of single changes, as differences of losses, and the architectures around which they hold."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.spent = 0
        self._cost = count_neighbours(archive.space)
        cardinalities, m = archive.space.cardinalities, len(archive.objectives)
        # Short axes first: NumPy adds and compares along long last axes several times as fast.
        self._tables = np.zeros((m, _REMEMBERED, int(cardinalities.max()), len(cardinalities)))
        self._losses = np.zeros((m, _REMEMBERED))
        self._limits = [
            np.inf if objective.limit is None else objective.sign * objective.limit for objective in archive.objectives
        ]
        self._measured: set[bytes] = set()

    def __len__(self) -> int:
        return min(len(self._measured), _REMEMBERED)

    def measure(self, good: Candidates, allowance: int, end: int, rng: np.random.Generator) -> list[Candidates]:
        """Measure around random ones of `good`, while all that was spent on this stays within `allowance` evaluations.

        `end`: how many evaluations the archive may have had. Returns what was new, by measurement.
        """
        measured = []
        for row in rng.permutation(len(good)).tolist():
            if self.spent + self._cost > allowance or self.archive.evaluated >= end:
                break
            if good.archs[row].tobytes() not in self._measured:
                before = self.archive.evaluated
                measured.append(self._measure(good.archs[row], good.losses[row], end - before))
                self.spent += self.archive.evaluated - before
        return measured

    def _measure(self, arch: IntMatrix, losses: FloatVector, at_most: int) -> Candidates:
        around = neighbours(arch, self.archive.space)
        fresh = self.archive.add(around, at_most)
        change = self.archive.losses_of(around) - losses
        change[np.isnan(change)] = _NEVER
        slots = np.repeat(np.arange(len(arch)), self.archive.space.cardinalities - 1)
        place = len(self._measured) % _REMEMBERED
        self._tables[:, place] = _NEVER
        self._tables[:, place, arch, np.arange(len(arch))] = 0.0
        self._tables[:, place, around[np.arange(len(slots)), slots], slots] = change.T
        self._losses[:, place] = losses
        self._measured.add(arch.tobytes())
        return fresh

    def children(self, good: Candidates, n: int, rng: np.random.Generator) -> IntMatrix:
        """(n, slots): members of a front, `good`, each with a random part of the changes that a weighting favours."""
        low, extent = good.losses.min(axis=0), np.ptp(good.losses, axis=0)
        extent[extent == 0] = 1.0
        weights = rng.exponential(size=(n, len(extent)))  # uniform over all weightings once they sum to 1
        weights /= weights.sum(axis=1, keepdims=True)
        scores = weights @ ((good.losses - low) / extent).T
        parents = (scores + _NOISE * rng.random(scores.shape)).argmin(axis=1)
        distance = np.zeros((n, len(self)))
        for losses, measured, unit in zip(good.losses[parents].T, self._losses[:, : len(self)], extent, strict=True):
            distance += np.abs(losses[:, None] - measured) / unit
        near = (distance * rng.uniform(1.0, 1.5, size=distance.shape)).argmin(axis=1)
        weights *= np.exp(_JITTER * rng.normal(size=weights.shape)) / extent
        archs = good.archs[parents]
        best, taken = self._favoured(archs, near, weights)
        taken &= rng.random(archs.shape) < rng.random((n, 1))
        if np.isfinite(self._limits).any():
            self._keep_limits(taken, archs, best, near, good.losses[parents], rng.permutation(archs.shape[1]))
        return np.where(taken, best, archs)

    def _favoured(
        self, archs: IntMatrix, near: NDArray[np.int64], weights: FloatMatrix
    ) -> tuple[IntMatrix, NDArray[np.bool_]]:
        """(n, slots) the option of each slot with the least weighted losses, and whether it beats the present one."""
        effects = np.zeros((len(archs), *self._tables.shape[2:]))
        for table, weight in zip(self._tables, weights.T, strict=True):
            effects += table[near] * weight[:, None, None]
        best = effects.argmin(axis=1)
        least = np.take_along_axis(effects, best[:, None], axis=1)[:, 0]
        return best, least < np.take_along_axis(effects, archs[:, None], axis=1)[:, 0]

    def _keep_limits(
        self,
        taken: NDArray[np.bool_],
        archs: IntMatrix,
        best: IntMatrix,
        near: NDArray[np.int64],
        losses: FloatMatrix,
        order: NDArray[np.int64],
    ) -> None:
        """Give up changes, the last in `order` first, that are foretold to lead over a limit."""
        rows, slots = near[:, None], np.arange(archs.shape[1])
        for table, limit, loss in zip(self._tables, self._limits, losses.T, strict=True):
            if np.isfinite(limit):
                change = np.where(taken, table[rows, best, slots] - table[rows, archs, slots], 0.0)
                room = limit - loss - np.minimum(change, 0.0).sum(axis=1)
                rising = np.cumsum(np.maximum(change, 0.0)[:, order], axis=1)
                taken[:, order] &= (rising <= room[:, None]) | (change[:, order] <= 0)
