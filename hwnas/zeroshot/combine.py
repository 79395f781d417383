"""Several scores as one: architectures ranked by the mean of the logarithms of their ranks.

Lee and Ham, "AZ-NAS", CVPR 2024, arXiv 2403.19232, section 3.3: with the rank r (1 worst, m best) of an architecture among
m in each score, its combined score is the sum of log(r / m); here the mean, so that it does not depend on how many
scores there are. The logarithm punishes who is bad at anything more than it rewards who is good at something. A rank is
one among others: a combined score is only comparable with those of the same call. A search gives everything that it has
seen so far, and ranks all of it anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatMatrix = NDArray[np.float64]
FloatVector = NDArray[np.float64]


def combine(scores: FloatMatrix) -> FloatVector:
    """(n, k) values of k scores, higher is better, NaN where undefined -> (n,) combined scores, 0 for the best in all.

    Equal values share the mean of their ranks; what is undefined shares the lowest ones.
    """
    scores = np.asarray(scores, dtype=np.float64)
    total: FloatVector = log_ranks(scores).mean(axis=1)
    return total


def log_ranks(scores: FloatMatrix) -> FloatMatrix:
    """(n, k) values -> (n, k) of log(rank / n), by column."""
    n, k = scores.shape
    columns = [np.log(average_ranks(np.nan_to_num(scores[:, column], nan=-np.inf)) / n) for column in range(k)]
    return np.stack(columns, axis=1) if columns else np.empty((n, 0))


def average_ranks(values: FloatVector) -> FloatVector:
    """(n,) -> (n,) ranks from 1 (lowest) to n; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: FloatVector = (last - (counts - 1) / 2)[inverse]
    return ranks
