"""Several scores as one: architectures ranked by the mean of the logarithms of their ranks.

Lee and Ham, "AZ-NAS", CVPR 2024, arXiv 2403.19232, section 3.3: with the rank r (1 worst, m best) of an architecture
among m in each score, its combined score is the sum of log(r / m); here the mean, so that it does not depend on how
many scores there are. The logarithm punishes who is bad at anything more than it rewards who is good at something. A
rank is one among others: a combined score is only comparable with those of the same call. A search gives everything
that it has seen so far, and ranks all of it anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwnas.ranks import average_ranks

FloatMatrix = NDArray[np.float64]
FloatVector = NDArray[np.float64]


def combine(scores: FloatMatrix) -> FloatVector:
    """(n, k) values of k scores, higher is better, NaN where undefined -> (n,) combined scores, 0 for the best in all.

    Equal values share the mean of their ranks; what is undefined shares the lowest ones.
    """
    total: FloatVector = log_ranks(scores).mean(axis=1)
    return total


def log_ranks(scores: FloatMatrix) -> FloatMatrix:
    """(n, k) values -> (n, k) of log(rank / n), by column: how much each score has to do with the combined one."""
    scores = np.asarray(scores, dtype=np.float64)
    return np.log(np.apply_along_axis(average_ranks, 0, scores) / max(1, len(scores))) if scores.size else scores
