"""Random search, within the limits and without repetitions."""

from __future__ import annotations

import numpy as np

from hwnas.search.samplers.base import History, HistorySampler
from hwnas.search.samplers.genes import Genes


class RandomSampler(HistorySampler):
    """Draws each trial uniformly among the new architectures that keep the limits."""

    def propose(self, history: History, genes: Genes, rng: np.random.Generator) -> None:
        return None
