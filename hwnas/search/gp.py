"""A Gaussian process over architectures: a sum of kernels, each on features of its own, fitted to few evaluations.

Hyper-parameters maximise the posterior (marginal likelihood times log-normal priors; Rasmussen & Williams 2006,
equations 5.8 and 5.9), since five evaluations do not determine them and fifty do. Targets are standardised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from hwnas.search.problem import FloatMatrix, FloatVector

_MEAN_VARIANCE = 4.0  # of the constant that all targets share
_JITTER = 1e-6
_BOUND = 12.0  # of the logarithms of hyper-parameters


@dataclass(frozen=True)
class Kernel:
    """A kernel on the columns `features` of an architecture's features, with the priors of its hyper-parameters.

    linear: v x.y; laplace: v exp(-|x - y|_1 / l); gauss: v exp(-|x - y|_2^2 / 2 l^2). `deviation`, the square root of
    v, and `length`, l, are the medians of log-normal priors with these standard deviations of the logarithm.
    """

    kind: Literal["linear", "laplace", "gauss"]
    features: slice
    deviation: float = 1.0
    deviation_spread: float = 0.5
    length: float = 1.0
    length_spread: float = 0.5

    def base(self, a: FloatMatrix, b: FloatMatrix) -> FloatMatrix:
        """(n, k) and (m, k) features -> (n, m): what the kernel is a function of."""
        a, b = a[:, self.features], b[:, self.features]
        if self.kind == "linear":
            return a @ b.T
        return np.asarray(cdist(a, b, "cityblock" if self.kind == "laplace" else "sqeuclidean"))

    def value(self, base: FloatMatrix, log_deviation: float, log_length: float) -> FloatMatrix:
        """(n, m) covariances."""
        variance = np.exp(2 * log_deviation)
        if self.kind == "linear":
            return np.asarray(variance * base)
        return np.asarray(variance * np.exp(-self._exponent(base, log_length)))

    def slope(self, base: FloatMatrix, value: FloatMatrix, log_length: float) -> FloatMatrix | None:
        """(n, m) derivative of the covariances by the logarithm of the length; None if there is no length."""
        if self.kind == "linear":
            return None
        power = 1 if self.kind == "laplace" else 2
        return np.asarray(power * self._exponent(base, log_length) * value)

    def prior_variance(self, features: FloatMatrix, log_deviation: float) -> FloatVector:
        """(n,) variances without data."""
        scale = (features[:, self.features] ** 2).sum(axis=1) if self.kind == "linear" else np.ones(len(features))
        return np.asarray(np.exp(2 * log_deviation) * scale)

    def _exponent(self, base: FloatMatrix, log_length: float) -> FloatMatrix:
        length = np.exp(log_length)
        return np.asarray(base / length if self.kind == "laplace" else base / (2 * length**2))


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process; `fit` makes one. `log_evidence` compares fits to the same targets on other scales."""

    kernels: tuple[Kernel, ...]
    features: FloatMatrix
    parameters: FloatVector
    log_evidence: float
    _targets: FloatVector
    _mean: float
    _scale: float
    _cholesky: FloatMatrix
    _weights: FloatVector

    @classmethod
    def fit(
        cls,
        kernels: Sequence[Kernel],
        features: FloatMatrix,
        targets: FloatVector,
        *,
        noise: float = 0.1,
        noise_spread: float = 0.7,
        start: FloatVector | None = None,
        iterations: int = 30,
    ) -> GaussianProcess:
        """Fit (n, k) features to (n,) targets; `noise`: the median of the prior of its share of their deviation.

        `start`: the parameters of an earlier fit with the same kernels.
        """
        mean, scale = float(targets.mean()), float(targets.std()) or 1.0
        standard = (targets - mean) / scale
        bases = [kernel.base(features, features) for kernel in kernels]
        centre = np.log([value for kernel in kernels for value in (kernel.deviation, kernel.length)] + [noise])
        spread = np.array(
            [value for kernel in kernels for value in (kernel.deviation_spread, kernel.length_spread)] + [noise_spread]
        )

        def objective(parameters: FloatVector) -> tuple[float, FloatVector]:
            away = (parameters - centre) / spread
            found = _negative_log_likelihood(kernels, bases, standard, parameters)
            return found[0] + 0.5 * float(away @ away), found[1] + away / spread

        first = centre if start is None else start
        bounds = [(-_BOUND, _BOUND)] * len(centre)
        result = minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations})
        evidence = -float(result.fun) - len(targets) * float(np.log(scale))
        return cls._of(tuple(kernels), features, result.x, evidence, standard, mean, scale)

    def extended(self, features: FloatMatrix, targets: FloatVector) -> GaussianProcess:
        """The process with (n, k) features and (n,) targets more, its parameters as they are."""
        standard = np.append(self._targets, (targets - self._mean) / self._scale)
        everything = np.concatenate([self.features, features])
        return self._of(self.kernels, everything, self.parameters, self.log_evidence, standard, self._mean, self._scale)

    @classmethod
    def _of(
        cls,
        kernels: tuple[Kernel, ...],
        features: FloatMatrix,
        parameters: FloatVector,
        evidence: float,
        standard: FloatVector,
        mean: float,
        scale: float,
    ) -> GaussianProcess:
        bases = [kernel.base(features, features) for kernel in kernels]
        cholesky = np.asarray(np.linalg.cholesky(_covariance(kernels, bases, parameters)[0]), dtype=np.float64)
        weights = np.asarray(cho_solve((cholesky, True), standard), dtype=np.float64)
        return cls(kernels, features, parameters, evidence, standard, mean, scale, cholesky, weights)

    def predict(self, features: FloatMatrix) -> tuple[FloatVector, FloatVector]:
        """(n, k) features -> (n,) means and (n,) standard deviations of the noiseless targets."""
        cross = np.full((len(self.features), len(features)), _MEAN_VARIANCE)
        prior = np.full(len(features), _MEAN_VARIANCE)
        for kernel, (deviation, length) in zip(self.kernels, self.parameters[:-1].reshape(-1, 2), strict=True):
            cross += kernel.value(kernel.base(self.features, features), deviation, length)
            prior += kernel.prior_variance(features, deviation)
        solved = solve_triangular(self._cholesky, cross, lower=True, check_finite=False)
        variance = np.maximum(prior - (solved**2).sum(axis=0), 1e-10)
        return self._mean + self._scale * (cross.T @ self._weights), self._scale * np.sqrt(variance)


def _covariance(
    kernels: Sequence[Kernel], bases: Sequence[FloatMatrix], parameters: FloatVector
) -> tuple[FloatMatrix, list[FloatMatrix]]:
    """The (n, n) covariance of noisy targets, and that of each kernel."""
    parts = [
        kernel.value(base, deviation, length)
        for kernel, base, (deviation, length) in zip(kernels, bases, parameters[:-1].reshape(-1, 2), strict=True)
    ]
    total = _MEAN_VARIANCE + np.sum(parts, axis=0)
    total[np.diag_indices_from(total)] += np.exp(2 * parameters[-1]) + _JITTER
    return total, parts


def _negative_log_likelihood(
    kernels: Sequence[Kernel], bases: Sequence[FloatMatrix], targets: FloatVector, parameters: FloatVector
) -> tuple[float, FloatVector]:
    """Its value and its gradient by the logarithms of the parameters."""
    total, parts = _covariance(kernels, bases, parameters)
    try:
        cholesky = np.linalg.cholesky(total)
    except np.linalg.LinAlgError:  # far out in the parameters, where the search turns back
        return 1e10, np.zeros_like(parameters)
    weights = cho_solve((cholesky, True), targets)
    inverse = cho_solve((cholesky, True), np.eye(len(targets)))
    inner = 0.5 * (inverse - np.outer(weights, weights))
    gradient = np.zeros_like(parameters)
    for number, (kernel, base, part) in enumerate(zip(kernels, bases, parts, strict=True)):
        gradient[2 * number] = 2 * np.sum(inner * part)
        slope = kernel.slope(base, part, float(parameters[2 * number + 1]))
        gradient[2 * number + 1] = 0.0 if slope is None else np.sum(inner * slope)
    gradient[-1] = 2 * np.exp(2 * parameters[-1]) * np.trace(inner)
    value = 0.5 * float(targets @ weights) + float(np.log(np.diag(cholesky)).sum())
    return value, gradient
