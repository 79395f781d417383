"""Regularised (aging) evolution (Real et al., AAAI 2019, arXiv 1802.01548, algorithm 1), for several objectives.

The population is the youngest `population` trials, so that what was lucky once dies of age. Of a random sample of it
the best has a child, one step away. With several objectives the best has the lowest nondominated rank, then the
largest crowding distance (Deb et al. 2002), where the paper has the highest accuracy.
"""

from __future__ import annotations

import numpy as np

from hwnas.errors import RecipeError
from hwnas.search.known import Known
from hwnas.search.pareto import crowding_distance, nondominated_ranks
from hwnas.search.samplers.base import PARENT, History, HistorySampler, Proposal
from hwnas.search.samplers.genes import Genes

_PARENTS = 10  # tournaments until one's winner has a child that is new and within the limits


class EvolutionSampler(HistorySampler):
    """Aging evolution: `population` trials are alive, `sample` of them compete to be the parent.

    Raises RecipeError if there are not 1 <= sample <= population.
    """

    def __init__(
        self, *, seed: int | None = None, known: Known | None = None, population: int = 20, sample: int = 5
    ) -> None:
        if not 1 <= sample <= population:
            raise RecipeError(f"needs 1 <= sample <= population, got sample = {sample}, population = {population}")
        super().__init__(seed=seed, known=known)
        self._population, self._sample = population, sample

    def propose(self, history: History, genes: Genes, rng: np.random.Generator) -> Proposal | None:
        if len(history) < self._population:
            return None
        alive = np.arange(len(history) - self._population, len(history))
        ranks = nondominated_ranks(np.where(history.violation[alive, None] > 0, np.nan, history.losses[alive]))
        crowding = crowding_distance(np.nan_to_num(history.losses[alive]), ranks)
        order = alive[np.lexsort((-crowding, ranks, history.violation[alive]))]  # the best first
        for _ in range(_PARENTS):
            parent = order[rng.choice(self._population, self._sample, replace=False).min()]
            children = self.choices(history, genes.neighbours(history.rows[parent], rng))
            if len(children):
                return Proposal(children[rng.integers(len(children))], {PARENT: int(history.numbers[parent])})
        return None
