"""What our samplers share: a study's history as matrices, what is known beforehand, and where randomness comes from.

Our samplers keep no state: a proposal follows from the seed, the number of the trial and the trials of the study. So
a search that was cut off and goes on asks for what it would have asked for, in this process or in many.

They work in any Optuna study. With `Known` they also use what a search space says of its architectures: which are the
same, which are near, which keep the limits.
"""

from __future__ import annotations

import warnings
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hwnas.search.known import Known
from hwnas.search.pareto import nondominated
from hwnas.search.problem import BoolVector, FloatMatrix, FloatVector
from hwnas.search.samplers.genes import ArchGenes, Genes, ParameterGenes, Rows, draw

PARENT = "parent"  # user attribute: the number of the trial that a trial's architecture was made from

_TRIES = 50  # samples of _SAMPLE rows that are looked through for a new one within the limits
_SAMPLE = 64


@dataclass(frozen=True)
class History:
    """The trials of a study as matrices.

    rows (n, genes), losses (n, objectives), violation (n,) of constraints and numbers (n,) of the complete trials, in
    the order of their numbers; `pending` (k, genes) of those that are being evaluated. `taken`: the rows of all trials,
    also of failed ones, which need not be asked for again.
    """

    rows: Rows
    losses: FloatMatrix
    violation: FloatVector
    numbers: Rows
    pending: Rows
    taken: frozenset[bytes]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def front(self) -> Rows:
        """Which trials are on the Pareto front, of those that break no constraint."""
        kept = np.flatnonzero(self.violation == 0)
        found: Rows = kept[nondominated(self.losses[kept])]
        return found

    def fresh(self, rows: Rows) -> BoolVector:
        """(n, genes) -> (n,) whether a row is new, the first among equal ones."""
        seen = set(self.taken)
        found = np.zeros(len(rows), dtype=np.bool_)
        for number, row in enumerate(rows):
            key = row.tobytes()
            found[number] = key not in seen
            seen.add(key)
        return found


@dataclass(frozen=True)
class Proposal:
    """A row to evaluate next, and what to note on its trial."""

    row: Rows
    notes: Mapping[str, Any]


class HistorySampler(BaseSampler):
    """A sampler without state. `seed` None: another one in every process. `known`: see `hwnas.search.known`."""

    def __init__(self, *, seed: int | None = None, known: Known | None = None) -> None:
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._unseeded = seed is None
        self._known = known
        self._intersection = IntersectionSearchSpace()
        self._rows: dict[tuple[int, int], Rows | None] = {}

    @abstractmethod
    def propose(self, history: History, genes: Genes, rng: np.random.Generator) -> Proposal | None:
        """What to evaluate next, new and within the limits; None: something random."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self._known is None:
            return self._intersection.calculate(study)
        return {slot.name: CategoricalDistribution(slot.options) for slot in self._known.space.slots}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        ours = self._known is not None and set(search_space) == {slot.name for slot in self._known.space.slots}
        known = self._known if ours else None
        genes: Genes = ParameterGenes(search_space) if known is None else ArchGenes(known.space)
        history = self._history(study, trial, genes, cached=known is not None)
        rng = self._rng(trial)
        found = self.propose(history, genes, rng) or Proposal(self._random(history, genes, rng), {})
        for name, value in found.notes.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, value)
        return genes.params(found.row)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        share = self._rng(trial, param_name).random(1)
        return param_distribution.to_external_repr(float(draw(param_distribution, share)[0]))

    def reseed_rng(self) -> None:
        # workers that share a seed differ by the numbers of their trials
        if self._unseeded:
            self._seed = int(np.random.SeedSequence().generate_state(1)[0])

    def choices(self, history: History, rows: Rows) -> Rows:
        """Those of (n, genes) rows that are new and within the limits, each once."""
        rows = rows[history.fresh(rows)] if len(rows) else rows
        if self._known is not None and len(rows):
            rows = rows[self._known.feasible(rows)]
        return rows

    def _random(self, history: History, genes: Genes, rng: np.random.Generator) -> Rows:
        """A random new row within the limits; where none is found, one that was evaluated before.

        Raises InfeasibleError if no architecture keeps the limits.
        """
        for _ in range(_TRIES):
            found = self.choices(history, genes.sample(_SAMPLE, rng))
            if len(found):
                break
        else:
            any_ = genes.sample(1, rng) if self._known is None else self._known.sample(_SAMPLE, rng)
            fresh = self.choices(history, any_)
            found = fresh if len(fresh) else any_
        row: Rows = found[0]
        return row

    def _rng(self, trial: FrozenTrial, name: str = "") -> np.random.Generator:
        return np.random.default_rng([self._seed, trial.number, zlib.crc32(name.encode())])

    def _history(self, study: Study, trial: FrozenTrial, genes: Genes, cached: bool) -> History:
        signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in study.directions])
        done: list[tuple[Rows, Sequence[float], float, int]] = []
        pending, taken = [], set()
        for other in study.get_trials(deepcopy=False):
            if other.number == trial.number:
                continue
            key = (study._study_id, other.number)
            if cached and key in self._rows and other.state.is_finished():
                row = self._rows[key]
            else:
                row = genes.row(other.params)
                if cached and other.state.is_finished():
                    self._rows[key] = row
            if row is None:
                continue
            taken.add(row.tobytes())
            if other.state == TrialState.COMPLETE and other.values is not None and not np.isnan(other.values).any():
                done.append((row, other.values, _violation(other), other.number))
            elif other.state in (TrialState.RUNNING, TrialState.WAITING):
                pending.append(row)
        empty = genes.sample(1, np.random.default_rng(0))[:0]
        rows, values, violation, numbers = zip(*done, strict=True) if done else ((), (), (), ())
        return History(
            rows=np.array(rows).reshape(-1, *empty.shape[1:]) if rows else empty,
            losses=np.array(values, dtype=np.float64).reshape(-1, len(signs)) * signs,
            violation=np.array(violation, dtype=np.float64),
            numbers=np.array(numbers, dtype=np.int64),
            pending=np.array(pending) if pending else empty,
            taken=frozenset(taken),
        )


def _violation(trial: FrozenTrial) -> float:
    """By how much a trial breaks constraints that users set, as Optuna has them: above 0 is broken."""
    given = trial.system_attrs.get("constraints")
    if given is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = list(getattr(trial, "constraints", {}).values())
    return float(sum(max(0.0, float(value)) for value in given or ()))
