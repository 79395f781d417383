"""Several scores as one: architectures ranked by the mean of the logarithms of their ranks.

Lee and Ham, "AZ-NAS", CVPR 2024, arXiv 2403.19232, section 3.3: with the rank r (1 worst, m best) of an architecture
among m in each score, its combined score is the sum of log(r / m); here the mean, so that it does not depend on how
many scores there are. The logarithm punishes who is bad at anything more than it rewards who is good at something. A
rank is one among others: a combined score is only comparable with those of the same call. A search gives everything
that it has seen so far, and ranks all of it anew.

A score that tells good cells apart can be noise on mobile networks, or worse. Accuracies that would tell are not known,
but where errors are independent, a predictor's agreement with the others is what shows its accuracy (Parisi, Strino,
Nadler and Kluger, "Ranking and combining multiple predictors without labeled data", PNAS 2014, arXiv 1303.3257). So a
score only votes on networks on which it agrees with the other scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwnas.ranks import average_ranks

FloatMatrix = NDArray[np.float64]
FloatVector = NDArray[np.float64]

LEAST_AGREEMENT = 0.2
# Of fewer networks an agreement of 0 and one of 0.5 cannot be told apart: all scores vote.
LEAST_NETWORKS = 16


def combine(scores: FloatMatrix) -> FloatVector:
    """(n, k) values of k scores, higher is better, NaN where undefined -> (n,) combined scores, 0 for the best in all.

    Equal values share the mean of their ranks; what is undefined shares the lowest ones.
    """
    ranks = _ranks(scores)
    total: FloatVector = np.log(ranks[:, votes(scores)] / max(1, len(ranks))).mean(axis=1)
    return total


def votes(scores: FloatMatrix) -> NDArray[np.bool_]:
    """(n, k) -> (k,): which scores are combined, those whose agreement is `LEAST_AGREEMENT` or more.

    All of them where this cannot be told: of few networks, of fewer than three scores, or if fewer than two agreed.
    """
    n, k = scores.shape
    everyone = np.ones(k, dtype=np.bool_)
    if n < LEAST_NETWORKS or k < 3:
        return everyone
    agreed: NDArray[np.bool_] = agreements(scores) >= LEAST_AGREEMENT
    return agreed if agreed.sum() > 1 else everyone


def agreements(scores: FloatMatrix) -> FloatVector:
    """(n, k) -> (k,): correlation of each score's ranks with the mean ranks of the others; 0 where one is constant."""
    ranks = _ranks(scores)
    found = np.zeros(ranks.shape[1])
    for column in range(ranks.shape[1]):
        own, others = ranks[:, column], np.delete(ranks, column, axis=1).mean(axis=1)
        if np.ptp(own) > 0 and np.ptp(others) > 0:
            found[column] = np.corrcoef(own, others)[0, 1]
    return found


def _ranks(scores: FloatMatrix) -> FloatMatrix:
    """(n, k) ranks by column."""
    scores = np.asarray(scores, dtype=np.float64)
    ranks: FloatMatrix = np.apply_along_axis(average_ranks, 0, scores) if scores.size else scores
    return ranks
