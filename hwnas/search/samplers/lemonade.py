"""LEMONADE's sampling (Elsken, Metzen, Hutter, ICLR 2019, arXiv 1804.09081, algorithm 1).

The population is the Pareto front of all that was evaluated. Objectives are cheap (known of an architecture before it
is trained) or expensive. A kernel density estimate of the population's cheap objectives says where the front is
crowded: parents are drawn with probability inverse to it, children are made of them one step away, and
of these the few to be evaluated are drawn the same way again. So most proposals cost nothing.

Deviations. The paper goes by generations: n_pc children of a fixed population, n_ac of which are trained. Here every
trial is a generation with `proposals` children of the front as it is then, one of which is evaluated; what is being
evaluated counts as part of the density. Cheap objectives are taken on a log scale, as the paper does for parameters,
where all are positive.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from hwnas.errors import RecipeError
from hwnas.search.known import Known
from hwnas.search.problem import FloatMatrix, FloatVector
from hwnas.search.samplers.base import PARENT, History, HistorySampler, Proposal
from hwnas.search.samplers.genes import Genes, Rows

_LEAST_LOG_DENSITY = -7.0  # beside the most crowded place: nothing is drawn a thousand times as often


class LemonadeSampler(HistorySampler):
    """LEMONADE after `start` trials of random or given architectures; `proposals` children compete for an evaluation.

    Cheap objectives are the exact ones of `known`; without any, parents are drawn by all objectives and children at
    random. The trial of a child has the number of its parent's in the user attribute 'parent', from which it can
    inherit weights. Raises RecipeError if `start` or `proposals` is below 1.
    """

    def __init__(
        self, *, seed: int | None = None, known: Known | None = None, start: int = 5, proposals: int = 20
    ) -> None:
        if start < 1 or proposals < 1:
            raise RecipeError(f"needs start >= 1 and proposals >= 1, got {start} and {proposals}")
        super().__init__(seed=seed, known=known)
        self._start, self._proposals = start, proposals

    def propose(self, history: History, genes: Genes, rng: np.random.Generator) -> Proposal | None:
        front = history.front
        if len(history) < self._start or not len(front):
            return self._first(history)
        population = self._cheap(history.rows[front])
        if population is None:
            population = history.losses[front]
        pending = self._cheap(history.pending)
        points = population if pending is None else np.concatenate([population, pending])
        density = _Density(points)
        parents = rng.choice(front, self._proposals, p=_inverse(density(population)))
        children, of = self._children(history, genes, parents, rng)
        if not len(children):
            return None
        cheap = self._cheap(children)
        chances = None if cheap is None else _inverse(density(cheap))
        chosen = int(rng.choice(len(children), p=chances))
        return Proposal(children[chosen], {PARENT: int(history.numbers[of[chosen]])})

    def _first(self, history: History) -> Proposal | None:
        """The next of the space's own architectures to start with, if it has any that keep the limits."""
        if self._known is None:
            return None
        rows = self.choices(history, self._known.space.start_archs())
        return Proposal(rows[0], {}) if len(rows) else None

    def _children(self, history: History, genes: Genes, parents: Rows, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """New children of the parents, one each where there is one, and the parent of each."""
        rows, of = [], []
        for parent in parents:
            children = self.choices(history, genes.neighbours(history.rows[parent], rng))
            if len(children):
                rows.append(children[rng.integers(len(children))])
                of.append(parent)
        if not rows:
            return history.rows[:0], np.empty(0, dtype=np.int64)
        found, first = np.unique(np.array(rows), axis=0, return_index=True)
        return found, np.array(of)[first]

    def _cheap(self, rows: Rows) -> FloatMatrix | None:
        """(n, genes) -> (n, k) the objectives that are known without an evaluation; None if there are none."""
        if self._known is None or not self._known.exact or not len(rows):
            return None
        return self._known.exact_losses(rows)


class _Density:
    """A Gaussian kernel density estimate on (n, k) points, with Scott's bandwidth for each column."""

    def __init__(self, points: FloatMatrix) -> None:
        self._log = bool((points > 0).all())
        self._points = np.log(points) if self._log else points
        n, k = points.shape
        spread = self._points.std(axis=0)
        self._width = np.where(spread > 0, spread, 1.0) * n ** (-1 / (k + 4))

    def __call__(self, points: FloatMatrix) -> FloatVector:
        """(m, k) -> (m,) logarithms of densities, up to a constant."""
        points = np.log(np.maximum(points, np.finfo(float).tiny)) if self._log else points
        away = (points[:, None] - self._points[None]) / self._width
        found: FloatVector = logsumexp(-0.5 * (away**2).sum(axis=2), axis=1)
        return found


def _inverse(log_density: FloatVector) -> FloatVector:
    """(n,) probabilities inverse to the densities; far out, where there is next to none, as if there were a little."""
    weights = np.exp(-np.maximum(log_density - log_density.max(), _LEAST_LOG_DENSITY))
    found: FloatVector = weights / weights.sum()
    return found
