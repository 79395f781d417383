"""Several scores as one: architectures ranked by the mean of the logarithms of their ranks.

Lee and Ham, "AZ-NAS", CVPR 2024, arXiv 2403.19232, section 3.3: with the rank r (1 worst, m best) of an architecture
among m in each score, its combined score is the sum of log(r / m); here the mean, so that it does not depend on how
many scores there are. The logarithm punishes who is bad at anything more than it rewards who is good at something. A
rank is one among others: a combined score is only comparable with those of the same call. A search gives everything
that it has seen so far, and ranks all of it anew.

A score that tells good cells apart can be noise on mobile networks, or worse. The accuracies that would tell are not
known, but predictors whose errors are independent agree with each other as far as they are right: the leading
eigenvector of their correlations has an entry for each that grows with its accuracy and is negative if it is worse than
chance (Parisi, Strino, Nadler and Kluger, "Ranking and combining multiple predictors without labeled data", PNAS 2014,
arXiv 1303.3257). A score with a negative entry has no vote. All others count the same: weighted by the roots of their
entries they ranked 600 cells of NAS-Bench-201 slightly better (tau .82 for .81), but the best tenth of them, which few
scores tell apart, worse (.22 for .31).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.ranks import average_ranks

FloatMatrix = NDArray[np.float64]
FloatVector = NDArray[np.float64]

# From fewer networks correlations cannot be told: all scores vote.
LEAST_NETWORKS = 16
_ROUNDING = 1e-9


def combine(scores: FloatMatrix) -> FloatVector:
    """(n, k) values of k scores, higher is better, NaN where undefined -> (n,) combined scores, 0 for the best in all.

    Equal values share the mean of their ranks; what is undefined shares the lowest ones.
    """
    ranks = _ranks(scores)
    combined: FloatVector = np.log(ranks[:, votes(scores)] / max(1, len(ranks))).mean(axis=1)
    return combined


def votes(scores: FloatMatrix) -> NDArray[np.bool_]:
    """(n, k) -> (k,): whether a score counts: all of few networks, or of fewer than three scores; else who agrees."""
    n, k = scores.shape
    return np.ones(k, dtype=np.bool_) if n < LEAST_NETWORKS or k < 3 else agreements(scores) > _ROUNDING


def silent(names: Sequence[str], scores: FloatMatrix) -> dict[str, float]:
    """The scores without a vote, by name, each with its agreement."""
    if len(scores) < LEAST_NETWORKS:
        return {}
    found = zip(names, votes(scores), agreements(scores), strict=True)
    return {name: round(float(agreement), 3) for name, vote, agreement in found if not vote}


def agreements(scores: FloatMatrix) -> FloatVector:
    """(n, k) -> (k,): the leading eigenvector of the correlations of ranks, positive in sum; 0 for a constant score."""
    ranks = _ranks(scores)
    ranks = ranks - ranks.mean(axis=0)
    lengths = np.linalg.norm(ranks, axis=0)
    ranks = ranks / np.where(lengths > 0, lengths, 1)  # a constant one correlates with nothing, not even itself
    leading = np.linalg.eigh(ranks.T @ ranks)[1][:, -1]
    agreed: FloatVector = leading if leading.sum() >= 0 else -leading
    return agreed


def _ranks(scores: FloatMatrix) -> FloatMatrix:
    """(n, k) ranks by column."""
    scores = np.asarray(scores, dtype=np.float64)
    ranks: FloatMatrix = np.apply_along_axis(average_ranks, 0, scores) if scores.size else scores
    return ranks
