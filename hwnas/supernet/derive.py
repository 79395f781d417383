"""The most probable architecture that keeps a hard latency target.

A differentiable loss only leans towards its target: what is most probable at the end may miss it by far. Here the
target is a constraint: maximise the sum of log probabilities subject to predicted latency <= target, and >= 95% of it
if any architecture is found there. Few choices are all tried. Otherwise the multiple-choice knapsack of the edges'
costs is solved by dynamic programming for every total at once; what it proposes is predicted in earnest, and improved
by changes of one and two edges, with the true predictor, whatever it is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InfeasibleError
from hwnas.space import Arch, IntMatrix, rows_of
from hwnas.supernet.alphas import Alphas, FloatMatrix
from hwnas.supernet.latency_loss import PredictMs, checked_ms, edge_costs
from hwnas.supernet.relaxed import Relaxation

LEAST_SHARE = 0.95  # of a target: networks between that and the target are preferred
_FEW = 20_000  # choices that are all tried
_TOTALS = 1000  # of costs that the dynamic programme tells apart
_STARTS = 5  # proposals that are improved
_CHANGES = 100  # the most improvements of one proposal


@dataclass(frozen=True)
class Derived:
    """An architecture, the choices it came from, its predicted ms, and the choices' log probability."""

    choices: tuple[int, ...]
    arch: Arch
    ms: float
    log_probability: float


def derive(
    relaxation: Relaxation, alphas: Alphas, predict_ms: PredictMs, target_ms: float, *, least_share: float = LEAST_SHARE
) -> Derived:
    """The most probable architecture of at most `target_ms`, and at least `least_share` of it where one is found.

    Where none is found in that band, the most probable of those at most as slow as the target.
    Raises InfeasibleError, saying what is attainable, if every architecture found is slower than the target.
    """
    problem = _Problem(relaxation, alphas, predict_ms, target_ms)
    few = problem.exists.sum(axis=1).prod(dtype=np.float64) <= _FEW
    proposals = _all_choices(problem.exists) if few else _proposals(problem)
    ms = problem.ms(proposals)
    for least_ms in (least_share * target_ms, 0.0):
        cost = problem.cost(proposals, ms, least_ms)
        if few:
            found = proposals[cost.argmin()]
        else:
            ends = [problem.improved(proposals[row], least_ms) for row in cost.argsort(kind="stable")[:_STARTS]]
            found = min(ends, key=lambda end: float(problem.cost(end[None], problem.ms(end[None]), least_ms)[0]))
        found_ms = float(problem.ms(found[None])[0])
        if least_ms <= found_ms <= target_ms:
            (choices,), (arch,) = rows_of(found[None]), rows_of(relaxation.archs(found[None]))
            return Derived(choices, arch, found_ms, float(problem.log_probability(found[None])[0]))
    raise InfeasibleError(
        f"no architecture of {relaxation.space.name} was found to take at most {target_ms:.4g} ms: the fastest takes "
        f"{found_ms:.4g} ms; raise the target"
    )


class _Problem:
    """What is optimised. Its cost is below 1 where the target is kept and counts the logarithm of probability there."""

    def __init__(self, relaxation: Relaxation, alphas: Alphas, predict_ms: PredictMs, target_ms: float) -> None:
        self.relaxation, self.alphas, self.predict_ms, self.target_ms = relaxation, alphas, predict_ms, target_ms
        self.exists = alphas.exists
        with np.errstate(divide="ignore"):
            # The floor keeps what rounding made impossible possible, as the last resort.
            self.logarithms: FloatMatrix = np.maximum(np.log(alphas.probabilities()), -700.0)
        self._least = np.where(self.exists, self.logarithms, 0.0).min(axis=1).sum()

    def ms(self, choices: IntMatrix) -> NDArray[np.float64]:
        archs = self.relaxation.archs(choices)
        return np.where(self.relaxation.usable(archs), checked_ms(self.predict_ms, archs), np.inf)

    def log_probability(self, choices: IntMatrix) -> NDArray[np.float64]:
        return np.asarray(self.logarithms[np.arange(choices.shape[1]), choices].sum(axis=1))

    def cost(self, choices: IntMatrix, ms: NDArray[np.float64], least_ms: float) -> NDArray[np.float64]:
        """(n,) lower is better: in the band by probability [0, 1], then by what lacks to it (1, 2], then too slow."""
        improbable = self.log_probability(choices) / (self._least or 1.0)
        below = 1 + (least_ms - ms) / self.target_ms
        return np.where(ms > self.target_ms, 1 + ms / self.target_ms, np.where(ms < least_ms, below, improbable))

    def improved(self, choices: IntMatrix, least_ms: float) -> IntMatrix:
        """The end of the steepest descent over changes of one or two edges."""
        best = float(self.cost(choices[None], self.ms(choices[None]), least_ms)[0])
        for _ in range(_CHANGES):
            rows = self._changed(choices)
            costs = self.cost(rows, self.ms(rows), least_ms)
            if not costs.min() < best:
                break
            best, choices = float(costs.min()), rows[costs.argmin()]
        return choices

    def _changed(self, choices: IntMatrix) -> IntMatrix:
        single = np.argwhere(self.exists & (np.arange(self.exists.shape[1]) != choices[:, None]))
        first, second = np.triu_indices(len(single))
        apart = (single[first, 0] != single[second, 0]) | (first == second)
        first, second = first[apart], second[apart]
        rows = np.repeat(choices[None], len(first), axis=0)
        for change in (first, second):
            rows[np.arange(len(rows)), single[change, 0]] = single[change, 1]
        return rows


def _all_choices(exists: NDArray[np.bool_]) -> IntMatrix:
    return np.array(list(itertools.product(*(range(count) for count in exists.sum(axis=1)))), dtype=np.int64)


def _proposals(problem: _Problem) -> IntMatrix:
    """(n, edges): the most probable choices for each total of the edges' costs."""
    rng = np.random.default_rng(0)  # what is drawn only matters to predictors that are not additive
    costs = edge_costs(problem.relaxation, problem.predict_ms, problem.alphas, rng).costs_ms
    costs = np.where(problem.exists, costs, np.inf)
    costs -= costs.min(axis=1, keepdims=True)
    width = max(np.where(problem.exists, costs, 0).max(axis=1).sum() / (_TOTALS - 1), 1e-12)
    total, value = np.zeros(1), np.zeros(1)
    steps: list[tuple[IntMatrix, IntMatrix]] = []
    for edge, options in enumerate(problem.exists.sum(axis=1)):
        totals = (total[:, None] + costs[edge, :options]).ravel()
        values = (value[:, None] + problem.logarithms[edge, :options]).ravel()
        # The best of each total; its exact sum goes on, so rounding does not add up over the edges.
        bins = (totals / width).round().astype(np.int64)
        order = np.lexsort((-values, bins))
        kept = order[np.unique(bins[order], return_index=True)[1]]
        total, value = totals[kept], values[kept]
        steps.append((kept // options, kept % options))
    choices = np.zeros((len(total), len(steps)), dtype=np.int64)
    state = np.arange(len(total))
    for edge in reversed(range(len(steps))):
        parents, taken = steps[edge]
        choices[:, edge], state = taken[state], parents[state]
    return choices
