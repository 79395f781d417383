"""The chance that one training ends better than another, learned from pairs of finished ones.

The idea of LCRankNet (Wistuba & Pedapati 2020, arXiv 2006.03361, eq. 2): a score f of what is known of a training so
far, P(a ends better than b) = sigmoid(f(a) - f(b)), fitted to all pairs by cross-entropy. Theirs is a neural network
over curves of other data sets. Here f is linear in a few features of ranks, because five to fifty curves of one search
are all there is: for a candidate in what it has shown, for a rival that has finished in how it finished. So the sum is
a logistic regression on pairs (a as it was, b as it ended). Weights have Gaussian priors, and the probability is
averaged over their posterior in the Laplace approximation (MacKay 1992, eq. 11 of "The evidence framework applied to
classification networks"): with few curves it stays near what is known.

Every curve is in n - 1 pairs which are not independent, so a pair counts `_PAIRS_PER_CURVE` / (n - 1) observations once
there are more. Values enter as normal scores of their ranks: they are comparable whatever the unit, and networks that
do not learn at all do not squeeze the others together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtri

from hwnas.search.problem import FloatMatrix, FloatVector

_PAIRS_PER_CURVE = 2.0  # more, and real curves end on the front more often than the chance says
_FINAL_VARIANCE = 20.0  # of the weight of a rival's final score: wide, since ranks that repeat make steep slopes
_BIAS_VARIANCE = 1e3
_STEPS = 25


@dataclass(frozen=True)
class PairwiseModel:
    """f(a) = weights of the features, f(b) = a weight of the final score; `fit` makes one.

    weights (features + 2,): of features, of the rival's final score, bias; covariance of them; center (features,).
    """

    weights: FloatVector
    covariance: FloatMatrix
    center: FloatVector

    @classmethod
    def fit(cls, features: FloatMatrix, finals: FloatVector, prior: FloatVector) -> PairwiseModel:
        """From (n, features) of curves as they were and (n,) final scores, more is better; at least two curves.

        `prior` (features,): variance of each weight before anything is seen.
        """
        n = len(finals)
        center = features.mean(axis=0)
        a, b = np.nonzero(~np.eye(n, dtype=np.bool_))
        design = np.column_stack([(features - center)[a], -finals[b], np.ones(len(a))])
        better = (finals[a] > finals[b]) + 0.5 * (finals[a] == finals[b])
        precision = 1 / np.concatenate([prior, [_FINAL_VARIANCE, _BIAS_VARIANCE]])
        weight = min(1.0, _PAIRS_PER_CURVE / (n - 1))
        weights = np.zeros(design.shape[1])
        for _ in range(_STEPS):  # Newton's method on a convex loss
            chance = expit(design @ weights)
            gradient = weight * design.T @ (chance - better) + precision * weights
            hessian = weight * (design.T * (chance * (1 - chance))) @ design + np.diag(precision)
            step = np.linalg.solve(hessian, gradient)
            weights = weights - step
            if np.abs(step).max() < 1e-6:
                break
        return cls(weights, np.linalg.inv(hessian), center)

    def chance(self, features: FloatVector, final: float) -> float:
        """The probability that a candidate with these (features,) ends above a final score."""
        row = np.concatenate([features - self.center, [-final, 1.0]])
        mean, variance = float(row @ self.weights), float(row @ self.covariance @ row)
        return float(expit(mean / math.sqrt(1 + math.pi * variance / 8)))


def normal_scores(values: FloatVector, pool: FloatVector) -> FloatVector:
    """(n,) values -> (n,) standard normal quantiles of their mid-ranks in a (m,) pool of at least one number."""
    ordered = np.sort(pool)
    below = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
    share = np.clip(below / len(pool), 0.25 / len(pool), 1 - 0.25 / len(pool))
    scores: FloatVector = ndtri(share)
    return scores
