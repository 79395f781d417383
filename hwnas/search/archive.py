"""What a search over predictors has seen: every architecture evaluated once, the front of all, and the extremes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import PredictorError
from hwnas.search.pareto import nondominated
from hwnas.search.problem import FloatMatrix, FloatVector, Objective, check_objectives, to_losses, violations
from hwnas.space import IntMatrix, SearchSpace

Evaluate = Callable[[IntMatrix], FloatMatrix]
Rows = NDArray[np.int64] | NDArray[np.bool_] | slice

_SLACK = 1024  # rows that may gather beyond twice the front before dominated ones are dropped


@dataclass(frozen=True)
class Candidates:
    """Evaluated architectures: archs (n, slots), losses (n, objectives), violation of the limits (n,)."""

    archs: IntMatrix
    losses: FloatMatrix
    violation: FloatVector

    def __len__(self) -> int:
        return len(self.archs)

    def take(self, rows: Rows) -> Candidates:
        """The candidates of these rows."""
        return Candidates(self.archs[rows], self.losses[rows], self.violation[rows])


def join(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of all parts, in order."""
    return Candidates(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Candidates)))


class Criteria(NamedTuple):
    """Which columns of `criteria_of` mean what, objective by objective."""

    ends: range  # the loss where feasible, else infinite
    violation: int
    best: range  # the loss, limits or not
    worst: range  # the negated loss


class Archive:
    """Evaluates architectures, each canonical one at most once, and keeps the best of all it has seen.

    Rows for which `evaluate` gives a number that is not finite count as seen and go no further. Of every one of
    `criteria` the extreme is kept.
    """

    def __init__(self, space: SearchSpace, evaluate: Evaluate, objectives: Sequence[Objective]) -> None:
        check_objectives(objectives)
        self.space, self.objectives, self.evaluated = space, tuple(objectives), 0
        m = len(objectives)
        self.criteria = Criteria(range(m), m, range(m + 1, 2 * m + 1), range(2 * m + 1, 3 * m + 1))
        self._evaluate = evaluate
        self._seen: dict[bytes, int] = {}  # the row of each in `_losses`
        self._losses = np.full((_SLACK, m), np.nan)
        self._key_type = np.min_scalar_type(int(space.cardinalities.max()) - 1)
        empty = np.empty((0, m))
        self._feasible = [Candidates(np.empty((0, len(space.slots)), dtype=np.int64), empty, np.empty(0))]
        self._room = _SLACK
        self._extremes: dict[int, Candidates] = {}
        self._scores = np.full(3 * m + 1, np.inf)

    def add(self, archs: IntMatrix, at_most: int) -> Candidates:
        """Evaluate those of (n, slots) archs that are new, `at_most` so many -> the new ones with finite values.

        Raises PredictorError if `evaluate` does not return (n, objectives) numbers.
        """
        begin = len(self._seen)
        archs = self._unseen(self.space.canonical(archs), at_most)
        if not len(archs):
            return self._feasible[0].take(slice(0, 0))
        values = np.asarray(self._evaluate(archs), dtype=np.float64)
        if values.shape != (len(archs), len(self.objectives)):
            raise PredictorError(
                f"for {archs.shape} architectures evaluate must return {(len(archs), len(self.objectives))} values, "
                f"a column each for {[o.name for o in self.objectives]}; got shape {values.shape}"
            )
        self.evaluated += len(archs)
        finite = np.isfinite(values).all(axis=1)
        archs, values = archs[finite], values[finite]
        fresh = Candidates(archs, to_losses(values, self.objectives), violations(values, self.objectives))
        if len(self._seen) > len(self._losses):
            self._losses = np.concatenate([self._losses, np.full((len(self._seen), len(self.objectives)), np.nan)])
        self._losses[begin + np.flatnonzero(finite)] = fresh.losses
        self._keep(fresh)
        return fresh

    def losses_of(self, archs: IntMatrix) -> FloatMatrix:
        """(n, slots) -> (n, objectives) the losses seen; NaN where not evaluated or not finite."""
        rows = np.array([self._seen.get(key, -1) for key in self._keys(self.space.canonical(archs))], dtype=np.int64)
        losses: FloatMatrix = self._losses[rows]
        losses[rows < 0] = np.nan
        return losses

    def front(self) -> Candidates:
        """The nondominated among all feasible candidates seen."""
        everything = join(self._feasible)
        kept = everything.take(nondominated(everything.losses))
        self._feasible, self._room = [kept], 2 * len(kept) + _SLACK
        return kept

    def any_finite(self) -> bool:
        """Whether anything with finite values has been seen."""
        return bool(self._extremes)

    def any_feasible(self) -> bool:
        """Whether something has been seen that keeps all limits."""
        return bool(self._scores[self.criteria.violation] == 0)

    def extremes(self, criterion: int) -> list[Candidates]:
        """The one candidate with the least of a criterion, the first seen of these; nothing if there is none."""
        return [self._extremes[criterion]] if criterion in self._extremes else []

    def score(self, criterion: int) -> float:
        """The least of a criterion seen; infinite before anything was."""
        return float(self._scores[criterion])

    def values(self, candidates: Candidates) -> FloatMatrix:
        """(n, objectives) the candidates' values in the user's sense."""
        return to_losses(candidates.losses, self.objectives)

    def _unseen(self, archs: IntMatrix, at_most: int) -> IntMatrix:
        seen = self._seen
        keys = self._keys(archs)
        new: list[int] = []
        for row in [row for row, key in enumerate(keys) if key not in seen]:
            if len(new) == at_most:
                break
            if keys[row] not in seen:  # it may have come twice among these
                seen[keys[row]] = len(seen)
                new.append(row)
        return archs[new]

    def _keys(self, archs: IntMatrix) -> list[bytes]:
        # the exact bytes of a row, in the smallest integers that hold it: no hash of ours that could collide
        packed = np.ascontiguousarray(archs, dtype=self._key_type)
        keys: list[bytes] = packed.view(f"V{packed.itemsize * packed.shape[1]}").ravel().tolist()
        return keys

    def _keep(self, fresh: Candidates) -> None:
        if not len(fresh):
            return
        criteria = criteria_of(fresh)
        best = criteria.argmin(axis=0)
        scores = criteria[best, np.arange(len(best))]
        for criterion in np.flatnonzero(scores < self._scores).tolist():
            self._extremes[criterion] = fresh.take(slice(best[criterion], best[criterion] + 1))
        self._scores = np.minimum(self._scores, scores)
        feasible = fresh.take(fresh.violation == 0)
        if len(feasible):
            self._feasible.append(feasible)
            self._room -= len(feasible)
            if self._room < 0:  # merged now and then, so that a long front costs every generation little
                self.front()


def criteria_of(candidates: Candidates) -> FloatMatrix:
    """(n, 3 objectives + 1), less is better, in the order of `Criteria`."""
    infeasible = candidates.violation[:, None] > 0
    losses = candidates.losses
    return np.column_stack([np.where(infeasible, np.inf, losses), candidates.violation, losses, -losses])
