"""How alike the latencies of two architectures are on a device that was never seen: the covariance behind transfer.

A device's latency over a space, on the scale of `scale.py`, is taken as a draw of a Gaussian process. Its covariance is
a sum of parts that each say one way in which devices differ (Rasmussen and Williams 2006, chapter 4): how fast the
device is, how strongly it follows the source devices' mean (or one of them), in which directions sources differ from
that, anything smooth in the latencies of the sources, one cost per option of a slot, costs of combinations of options,
and how often each option occurs, wherever it stands (which is what a device with a fixed cost per operator sees) or
about where it stands. How much of each there is, and how much noise, are the `weights`: natural logarithms, as parts of
the variance of the source devices' latencies on their scales.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg
from scipy.optimize import minimize

from hwnas.latency.features import Features, FloatMatrix, FloatVector

PARTS = ("speed", "mean", "directions", "smooth", "additive", "combined", "counts", "smooth counts", "placed")
# Where the weights of the parts, and of the noise, are sought: a normal prior wide enough for factors of 50 either way.
# The speed of a device is not learnt, it is free.
WEIGHT_MEAN = np.log([100.0, 0.1, 0.3, 0.1, 0.1, 0.03, 0.1, 0.03, 0.1, 0.01])
WEIGHT_SD = np.array([0.01, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
# Degrees of freedom of the noise: the usual choice where a few measurements in a hundred are far off.
_FREEDOM = 4.0


def covariances(left: Features, right: Features, slots: int, variance: float) -> FloatMatrix:
    """(parts, n, m) covariance of each part between two sets of architectures, of weight one."""
    additive = left.onehot @ right.onehot.T / slots
    # Slots in which two architectures agree; one-hot rows are centred, so agreement is read from distances.
    differing = _square_distances(left.onehot, right.onehot) / 2 / slots
    found = [
        np.ones((len(left.source), len(right.source))),
        np.outer(left.mean, right.mean) / variance,
        left.directions @ right.directions.T / left.many / variance,
        np.exp(-0.5 * _square_distances(left.source, right.source) / left.many / variance)
        if left.source.shape[1]
        else np.zeros_like(additive),
        additive,
        np.exp(-3 * differing),
        left.counts @ right.counts.T,
        np.exp(-0.5 * _square_distances(left.counts, right.counts)),
        left.placed @ right.placed.T,
    ]
    return np.stack(found) * variance


def variances(features: Features, slots: int, variance: float) -> FloatMatrix:
    """(parts, n): the diagonal of `covariances` of the architectures with themselves."""
    ones = np.ones(len(features.source))
    found = [
        ones,
        features.mean**2 / variance,
        (features.directions**2).sum(axis=1) / features.many / variance,
        ones if features.source.shape[1] else 0 * ones,
        (features.onehot**2).sum(axis=1) / slots,
        ones,
        (features.counts**2).sum(axis=1),
        ones,
        (features.placed**2).sum(axis=1),
    ]
    return np.stack(found) * variance


@dataclass(frozen=True)
class Evidence:
    """k measured values: `parts` (parts, k, k) their covariances, `residual` (k,) values less the prior mean.

    `rounding` (k,) is the variance of the clock's last digit, `inflation` (k,) how many times the usual noise each
    value is believed to carry, `variance` the unit of the weights.
    """

    parts: FloatMatrix
    residual: FloatVector
    rounding: FloatVector
    inflation: FloatVector
    variance: float

    def factor(self, weights: FloatVector) -> tuple[float, FloatMatrix, FloatVector]:
        """Log marginal likelihood, Cholesky factor of the covariance, and the covariance's inverse on the residual."""
        total = np.tensordot(np.exp(weights[:-1]), self.parts, 1)
        total[np.diag_indices_from(total)] += np.exp(weights[-1]) * self.variance * self.inflation + self.rounding
        # Equal architectures are equal rows: a jitter far below any clock keeps the factor real.
        total[np.diag_indices_from(total)] += 1e-9 * self.variance
        lower = linalg.cholesky(total, lower=True, check_finite=False)
        solved = linalg.cho_solve((lower, True), self.residual, check_finite=False)
        likelihood = -0.5 * self.residual @ solved - np.log(np.diag(lower)).sum()
        return float(likelihood), lower, solved


def most_probable(evidence: Evidence, mean: FloatVector, sd: FloatVector, start: FloatVector) -> FloatVector:
    """(parts + 1,) the weights of the largest posterior under a normal prior; slopes by equation 5.9."""

    def objective(weights: FloatVector) -> tuple[float, FloatVector]:
        likelihood, lower, solved = evidence.factor(weights)
        inverse = linalg.cho_solve((lower, True), np.eye(len(solved)), check_finite=False)
        inner = np.outer(solved, solved) - inverse
        slope = np.append(
            np.tensordot(evidence.parts, inner, 2), np.diag(inner) @ evidence.inflation * evidence.variance
        )
        off = (weights - mean) / sd
        return 0.5 * float(off @ off) - likelihood, off / sd - 0.5 * slope * np.exp(weights)

    bounds = [(centre - 5 * width, centre + 5 * width) for centre, width in zip(WEIGHT_MEAN, WEIGHT_SD, strict=True)]
    return np.asarray(minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40}).x)


def left_out(evidence: Evidence, weights: FloatVector) -> tuple[FloatVector, FloatVector]:
    """Two (k,): each value less what the others predict of it, and the variance of that were its noise the usual.

    Rasmussen and Williams 2006, equations 5.10 to 5.12.
    """
    _, lower, solved = evidence.factor(weights)
    root = linalg.solve_triangular(lower, np.eye(len(solved)), lower=True, check_finite=False)
    precision = (root**2).sum(axis=0)
    usual = np.exp(weights[-1]) * evidence.variance
    return solved / precision, np.maximum(1 / precision - usual * (evidence.inflation - 1), usual)


def inflated(evidence: Evidence, weights: FloatVector) -> FloatVector:
    """(k,) the noise of each value, in multiples of the usual, if noise is Student's t and the others predict it.

    Left-out errors, not residuals: a flexible process passes through an outlier, its neighbours do not foresee it.
    """
    usual = np.exp(weights[-1]) * evidence.variance
    found = evidence.inflation
    for _ in range(3):
        error, spread = left_out(evidence, weights)
        square = error**2 / spread
        scale = float(np.median(square)) + 1e-12
        for _ in range(20):
            scale = float(((_FREEDOM + 1) / (_FREEDOM + square / scale) * square).mean()) + 1e-12
        excess = np.maximum((_FREEDOM + square / scale) / (_FREEDOM + 1) - 1, 0)
        # The excess is over the whole spread, and belongs to the noise.
        found = 1 + excess * spread * scale / usual
        evidence = replace(evidence, inflation=found)
    return found


def _square_distances(left: FloatMatrix, right: FloatMatrix) -> FloatMatrix:
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.asarray(np.maximum(squares, 0.0))
