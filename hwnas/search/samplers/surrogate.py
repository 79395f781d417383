"""Bayesian search for spaces of categorical slots: few evaluations of what is expensive, everything else known.

A Gaussian process for every expensive objective (`warped.py`) sees the slots, what the space says of equal networks
(`SearchSpace.features`) and zero-shot scores as its prior: how far each is to be believed is fitted. Latency and the
like are known exactly. Evaluated next is what promises the largest expected hypervolume improvement (Emmerich et al.
2006; the expectation by quantiles, the improvement exactly), within the limits. What is being evaluated elsewhere
counts as if it gave what the model predicts ("kriging believer", Ginsbourger et al. 2010), so that batches spread.

The first trials are the best of each exact objective and some spread over the front of exact objectives and scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, qmc

from hwnas.errors import RecipeError
from hwnas.search.inner import nsga2
from hwnas.search.known import Known
from hwnas.search.pareto import hypervolume_improvement, nondominated
from hwnas.search.problem import FloatMatrix, FloatVector, Objective
from hwnas.search.samplers.base import History, HistorySampler, Proposal
from hwnas.search.samplers.genes import ArchGenes, Genes, Rows
from hwnas.search.samplers.pool import Pool, combined, kernels, pool_of
from hwnas.search.warped import WarpedModel

# A space up to this size is looked at whole; of a larger one, random architectures, what is near to the front, and what
# an evolution on the model finds.
_WHOLE = 50_000
_RANDOM = 1_000
_POPULATION, _GENERATIONS = 100, 10
_HOPE = 2.0  # deviations by which the expensive objectives of a candidate may turn out better
_DRAWS = 32  # of the expensive objectives, for the expectation
_SHORTLIST = 500  # candidates of which the expectation is computed, with 3 objectives or more a fifth of these


class SurrogateSampler(HistorySampler):
    """Expected hypervolume improvement after `start` trials. Raises RecipeError if `start` is below 2."""

    def __init__(self, *, seed: int | None = None, known: Known | None = None, start: int = 5) -> None:
        if start < 2:
            raise RecipeError(f"needs start >= 2, got {start}")
        super().__init__(seed=seed, known=known)
        self._start = start
        self._whole: Pool | None = None
        self._designs: dict[int, Rows] = {}

    def propose(self, history: History, genes: Genes, rng: np.random.Generator) -> Proposal | None:
        known = self._known if isinstance(genes, ArchGenes) else None
        if len(history) < self._start:
            rows = self._design(genes, known, self._start + len(history.pending))
            rows = self.choices(history, rows)
            return Proposal(rows[0], {}) if len(rows) else None
        exact = [] if known is None else known.exact_numbers
        seen = pool_of(history.rows, genes, known)
        pending = pool_of(history.pending, genes, known) if len(history.pending) else seen.take(slice(0))
        model = _Model(history, seen, pending, exact)
        if not model.expensive:
            return None
        pool = self._candidates(history, genes, known, model, rng)
        if pool is None:
            return None
        return Proposal(pool.rows[int(model.expected_gains(pool, self._limits(known)).argmax())], {})

    def _design(self, genes: Genes, known: Known | None, n: int) -> Rows:
        """(at least n, genes) rows to begin with, as far as there are so many; the same whenever they are asked for."""
        if known is not None and n in self._designs:
            return self._designs[n]
        rng = np.random.default_rng(self._seed)
        pool = self._everything(genes, known)
        if pool is None:
            worth = None if known is None else known.worth_a_look
            # scores that were computed count for more than those that a regression foretells
            rows = self._some(genes, known, rng) if worth is None or len(worth) < n else worth
            pool = pool_of(np.unique(rows, axis=0), genes, known)
        score = combined(pool.ranks) if pool.ranks.shape[1] else np.zeros(len(pool))
        ends = [int(np.lexsort((-score, column))[0]) for column in pool.exact.T]
        losses = np.column_stack([pool.exact, -score])
        front = np.flatnonzero(nondominated(losses)) if losses[:, -1].any() else np.arange(0)
        front = front[np.lexsort(losses[front].T[::-1])]
        others = len(set(ends) - set(front.tolist()))
        places = np.linspace(0, len(front) - 1, max(0, n - others)).round().astype(int)
        chosen = dict.fromkeys([*ends, *(front[places].tolist() if len(front) else []), *rng.permutation(len(pool))])
        self._designs[n] = pool.rows[list(chosen)[: max(n, len(ends) + len(places))]]
        return self._designs[n]

    def _everything(self, genes: Genes, known: Known | None) -> Pool | None:
        """Every architecture within the limits, if they are few enough to be looked at one by one.

        Raises InfeasibleError if none is.
        """
        if known is None or known.space.size > _WHOLE:
            return None
        if self._whole is None:
            tuples = np.indices(tuple(known.space.cardinalities.tolist())).reshape(len(known.space.slots), -1).T
            rows = np.unique(known.space.canonical(np.ascontiguousarray(tuples)), axis=0)
            kept = rows[known.feasible(rows)]
            self._whole = pool_of(kept if len(kept) else known.sample(1, np.random.default_rng(0)), genes, known)
        return self._whole

    def _some(self, genes: Genes, known: Known | None, rng: np.random.Generator) -> Rows:
        """Random architectures within the limits, and those that are said to be worth a look."""
        if known is None:
            return genes.sample(_RANDOM, rng)
        some, worth = known.sample(_RANDOM, rng), known.worth_a_look
        return some if worth is None else np.concatenate([some, worth])

    def _candidates(
        self, history: History, genes: Genes, known: Known | None, model: _Model, rng: np.random.Generator
    ) -> Pool | None:
        """New architectures within the limits, if there are any."""
        whole = self._everything(genes, known)
        if whole is not None:
            fresh = history.fresh(whole.rows)
            return whole.take(fresh) if fresh.any() else None
        parts = [genes.neighbours(row, rng) for row in history.rows[history.front]]
        parts.append(self._some(genes, known, rng))
        if known is not None:
            parts.append(self._evolved(history, genes, known, model, rng))
        rows = self.choices(history, np.concatenate(parts))
        return pool_of(rows, genes, known) if len(rows) else None

    def _evolved(self, history: History, genes: Genes, known: Known, model: _Model, rng: np.random.Generator) -> Rows:
        """The front that the model predicts within the limits, found by NSGA-II."""

        def evaluate(archs: Rows) -> FloatMatrix:
            losses = model.predict(pool_of(archs, genes, known))
            losses[~known.feasible(archs)] = np.nan
            return losses

        losses = [Objective(objective.name, "", "minimize") for objective in known.objectives]
        return nsga2(
            known.space,
            evaluate,
            losses,
            population=_POPULATION,
            generations=_GENERATIONS,
            seed=int(rng.integers(1 << 31)),
            initial=np.concatenate([known.sample(_POPULATION, rng), history.rows]),
        ).archs

    def _limits(self, known: Known | None) -> dict[int, float]:
        """Objective number -> the loss that is its limit."""
        objectives = () if known is None else known.objectives
        return {n: each.sign * each.limit for n, each in enumerate(objectives) if each.limit is not None}


class _Model:
    """What the trials of a study tell about all objectives: exact ones as they are, a process for every other."""

    def __init__(self, history: History, seen: Pool, pending: Pool, exact: list[int]) -> None:
        self._exact = exact
        self._count = history.losses.shape[1]
        self.expensive = [number for number in range(self._count) if number not in exact]
        parts = kernels(seen)
        self._processes = [
            WarpedModel.fit(parts, seen.features, history.losses[:, number]).with_fantasies(pending.features)
            for number in self.expensive
        ]
        # what was evaluated counts by its prediction, from which the noise of a single evaluation is gone
        predicted = self.predict(seen)
        self._reached = np.concatenate([predicted[history.violation == 0], self.predict(pending)])
        self._worst = np.maximum(predicted.max(axis=0), history.losses.max(axis=0))

    def predict(self, pool: Pool) -> FloatMatrix:
        """(n, objectives) losses; the medians of the expensive ones."""
        return self._losses(pool, [means for means, _ in self._moments(pool)])

    def expected_gains(self, pool: Pool, limits: dict[int, float]) -> FloatVector:
        """(n,) expected hypervolume improvements; 0 for candidates that promise less than `_SHORTLIST` others.

        The reference point is the worst there is: of exact objectives among all candidates, of the others among what
        was evaluated, and a limit where there is one.
        """
        reference = self._worst.copy()
        if self._exact:
            reference[self._exact] = np.maximum(reference[self._exact], pool.exact.max(axis=0))
        for number, limit in limits.items():
            reference[number] = min(reference[number], limit)
        reference += 1e-9 * np.maximum(np.abs(reference), 1.0)
        front = self._reached[nondominated(self._reached)]
        moments = self._moments(pool)
        hopeful = self._losses(pool, [means - _HOPE * deviations for means, deviations in moments])
        rows = _promising(hopeful, front, reference)
        chosen, points = pool.take(rows), _quantiles(len(self.expensive))
        draws = np.stack(
            [
                self._losses(chosen, [m[rows] + q * d[rows] for (m, d), q in zip(moments, point, strict=True)])
                for point in points
            ],
            axis=1,
        )
        gains = np.zeros(len(pool))
        added = hypervolume_improvement(draws.reshape(-1, self._count), front, reference)
        gains[rows] = added.reshape(len(rows), len(points)).mean(axis=1)
        return gains

    def _moments(self, pool: Pool) -> list[tuple[FloatVector, FloatVector]]:
        return [process.predict(pool.features) for process in self._processes]

    def _losses(self, pool: Pool, values: Sequence[FloatVector]) -> FloatMatrix:
        """(n, objectives) losses of which the expensive ones are (n,) values of their processes."""
        losses = np.empty((len(pool), self._count))
        losses[:, self._exact] = pool.exact
        for number, process, each in zip(self.expensive, self._processes, values, strict=True):
            losses[:, number] = process.losses(each)
        return losses


def _quantiles(expensive: int) -> FloatMatrix:
    """(draws, expensive objectives) points of the standard normal distribution, spread evenly."""
    if expensive == 1:
        return np.asarray(norm.ppf((np.arange(_DRAWS)[:, None] + 0.5) / _DRAWS))
    return np.asarray(norm.ppf(np.clip(qmc.Sobol(expensive, seed=0).random(_DRAWS), 1e-3, 1 - 1e-3)))


def _promising(hopeful: FloatMatrix, front: FloatMatrix, reference: FloatVector) -> Rows:
    """The candidates that would gain most with these (n, objectives) losses."""
    if hopeful.shape[1] <= 2:
        return np.argsort(-hypervolume_improvement(hopeful, front, reference), kind="stable")[:_SHORTLIST]
    # The improvement would take a hypervolume for each: instead by how much all objectives could be worse and the front
    # would still not cover it (additive epsilon)
    extent = np.maximum(reference - front.min(axis=0), np.finfo(float).tiny)
    beyond = np.max((front[None] - hopeful[:, None]) / extent, axis=2).min(axis=1)
    return np.argsort(-beyond, kind="stable")[: _SHORTLIST // 5]
