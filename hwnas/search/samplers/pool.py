"""Candidates with all that is known of them before an evaluation, as a model of accuracy sees them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist

from hwnas.search.gp import Kernel
from hwnas.search.known import Known
from hwnas.search.problem import FloatMatrix, FloatVector
from hwnas.search.samplers.genes import Genes, Rows

_LEAST_RANK = 1e-3
_SOME = 200  # rows that tell how far features usually are apart


@dataclass(frozen=True)
class Pool:
    """rows (n, genes); exact (n, e) losses of objectives that need no evaluation; ranks (n, s) of scores, in [0, 1].

    `features` (n, k): the slots one-hot, what makes networks equal, the combined rank, and every rank; `widths` are the
    numbers of columns of these four.
    """

    rows: Rows
    exact: FloatMatrix
    ranks: FloatMatrix
    features: FloatMatrix
    widths: tuple[int, int, int, int]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Rows | slice) -> Pool:
        """The candidates of these rows."""
        return Pool(self.rows[rows], self.exact[rows], self.ranks[rows], self.features[rows], self.widths)


def pool_of(rows: Rows, genes: Genes, known: Known | None) -> Pool:
    """What is known of (n, genes) rows, n > 0; without `known` that is where they are."""
    slots, same = genes.features(rows)
    exact, ranks = np.empty((len(rows), 0)), np.empty((len(rows), 0))
    if known is not None:
        exact = known.exact_losses(rows)
        if known.prior is not None:
            ranks = np.clip(np.nan_to_num(known.prior(rows), nan=0.0), _LEAST_RANK, 1.0)
    parts = [slots, same]
    # a rank that is uniform in [0, 1] has mean 1/2 and variance 1/12, its logarithm mean -1 and variance 1
    parts += [combined(ranks)[:, None] + 1, (ranks - 0.5) * np.sqrt(12)] if ranks.shape[1] else [ranks, ranks]
    widths = slots.shape[1], same.shape[1], parts[2].shape[1], parts[3].shape[1]
    return Pool(rows, exact, ranks, np.concatenate(parts, axis=1), widths)


def combined(ranks: FloatMatrix) -> FloatVector:
    """(n, s) ranks of scores -> (n,) the mean of their logarithms (Lee & Ham, CVPR 2024, AZ-NAS)."""
    return np.asarray(np.log(ranks).mean(axis=1))


def kernels(pool: Pool) -> list[Kernel]:
    """The kernels of a model of accuracy: slots, equal networks, main effects, the combined score, and the scores."""
    places = np.cumsum((0, *pool.widths)).tolist()
    slots, same, score, scores = (slice(*pair) for pair in itertools.pairwise(places))
    found = [
        Kernel("laplace", slots, deviation=0.6, length=_usual_distance(pool.features[:, slots], "cityblock")),
        Kernel("linear", slots, deviation=0.1, deviation_spread=1.0),
    ]
    if pool.widths[1]:
        length = _usual_distance(pool.features[:, same], "cityblock")
        found.append(Kernel("laplace", same, deviation=1.0, length=length, length_spread=0.7))
    if pool.widths[2]:
        found.append(Kernel("linear", score, deviation=1.0, deviation_spread=1.0))
        found.append(Kernel("gauss", scores, length=0.5 * _usual_distance(pool.features[:, scores], "euclidean")))
    return found


def _usual_distance(features: FloatMatrix, metric: str) -> float:
    some = features[:: max(1, len(features) // _SOME)]
    distances = pdist(some, metric)
    return float(np.median(distances[distances > 0])) if (distances > 0).any() else 1.0
