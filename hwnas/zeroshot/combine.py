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
arXiv 1303.3257). A score with a negative entry has no vote; all others count the same.

What tells good from bad need not tell the best from the good: the scores that have a vote are judged again among the
best quarter, and one that disagrees there has no say in its order (Jacobian covariance, on cells and on mobile
networks). COMPLEMENTS are not judged, nor are the others judged by them: what is known exactly, and says something else
than scores that grow with size, need not agree with them.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from hwnas.ranks import average_ranks

FloatMatrix = NDArray[np.float64]
FloatVector = NDArray[np.float64]

# Of the best cells of NAS-Bench-201 the larger ones have longer shortest paths: there it disagrees with the others, and
# tells what they do not. Where all networks have the same it changes nothing.
COMPLEMENTS = frozenset({"shortest_path"})
# From fewer networks correlations cannot be told: all scores vote.
LEAST_NETWORKS = 16
BEST = 0.25  # the share of networks whose order is voted on again
_ROUNDING = 1e-9


def combine(names: Sequence[str], scores: FloatMatrix) -> FloatVector:
    """(n, k) values of k named scores, higher is better, NaN where undefined -> (n,) combined, 0 for the best in all.

    Equal values share the mean of their ranks; what is undefined shares the lowest ones. The best quarter has the
    values that all voters give it, in the order of those that have a vote in it.
    """
    without_vote, again = silent(names, scores), silent_among_best(names, scores)
    combined = _mean_log_rank(names, scores, without_vote)
    if again:
        best = _best(combined)
        order = average_ranks(_mean_log_rank(names, scores, without_vote | again)[best])
        combined[best] = np.interp(order, 1 + np.arange(len(order)), np.sort(combined[best]))
    return combined


def silent(names: Sequence[str], scores: FloatMatrix) -> dict[str, float]:
    """The scores that do not count, by name, each with its agreement: none of few networks, or of two scores."""
    judged = [name not in COMPLEMENTS for name in names]
    if len(scores) < LEAST_NETWORKS or sum(judged) < 3:
        return {}
    found = zip(compress(names, judged), agreements(scores[:, judged]), strict=True)
    return {name: round(float(agreement), 3) for name, agreement in found if agreement <= _ROUNDING}


def silent_among_best(names: Sequence[str], scores: FloatMatrix) -> dict[str, float]:
    """The scores that count, but not in the order of the best quarter, by name, each with its agreement there."""
    without_vote = silent(names, scores)
    voting = [name not in without_vote for name in names]
    best = _best(_mean_log_rank(names, scores, without_vote))
    return silent(tuple(compress(names, voting)), scores[best][:, voting])


def agreements(scores: FloatMatrix) -> FloatVector:
    """(n, k) -> (k,): the leading eigenvector of the correlations of ranks, positive in sum; 0 for a constant score."""
    ranks = _ranks(scores)
    ranks = ranks - ranks.mean(axis=0)
    lengths = np.linalg.norm(ranks, axis=0)
    ranks = ranks / np.where(lengths > 0, lengths, 1)  # a constant one correlates with nothing, not even itself
    leading = np.linalg.eigh(ranks.T @ ranks)[1][:, -1]
    agreed: FloatVector = leading if leading.sum() >= 0 else -leading
    return agreed


def _mean_log_rank(names: Sequence[str], scores: FloatMatrix, without_vote: Container[str]) -> FloatVector:
    """(n, k) -> (n,) from the worst to 0."""
    ranks = _ranks(scores[:, [name not in without_vote for name in names]])
    combined: FloatVector = np.log(ranks / max(1, len(ranks))).mean(axis=1)
    return combined


def _best(combined: FloatVector) -> NDArray[np.bool_]:
    """(n,) -> (n,): whether in the best quarter."""
    best: NDArray[np.bool_] = average_ranks(combined) > (1 - BEST) * len(combined)
    return best


def _ranks(scores: FloatMatrix) -> FloatMatrix:
    """(n, k) ranks by column."""
    scores = np.asarray(scores, dtype=np.float64)
    ranks: FloatMatrix = np.apply_along_axis(average_ranks, 0, scores) if scores.size else scores
    return ranks
