"""Pareto local search (Paquete, Chiarandini, Stützle 2004): the neighbours of every member of the front are evaluated.

A member whose neighbours were all evaluated is explored. Each trial is a random neighbour of a random unexplored member
(the paper finishes one neighbourhood before the next; this way the front moves at every trial). When all are explored
the search goes on from a random architecture. White et al. (arXiv 2005.02960) found the one-objective form strong.
"""

from __future__ import annotations

import numpy as np

from hwnas.errors import RecipeError
from hwnas.search.known import Known
from hwnas.search.samplers.base import PARENT, History, HistorySampler, Proposal
from hwnas.search.samplers.genes import Genes


class LocalSearchSampler(HistorySampler):
    """Pareto local search after `start` random trials. Raises RecipeError if `start` is below 1."""

    def __init__(self, *, seed: int | None = None, known: Known | None = None, start: int = 10) -> None:
        if start < 1:
            raise RecipeError(f"needs start >= 1, got {start}")
        super().__init__(seed=seed, known=known)
        self._start = start

    def propose(self, history: History, genes: Genes, rng: np.random.Generator) -> Proposal | None:
        if len(history) < self._start:
            return None
        front = history.front
        for member in rng.permutation(front):
            children = self.choices(history, genes.neighbours(history.rows[member], rng))
            if len(children):
                return Proposal(children[rng.integers(len(children))], {PARENT: int(history.numbers[member])})
        return None
