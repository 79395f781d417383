"""Regressions from features to the accuracy on its fitted scale, among which cross-validation chooses.

`additive`, `pairs` and `smooth` are the means of Gaussian processes whose kernels are sums over the blocks of features
(Duvenaud et al., NeurIPS 2011, arXiv 1112.4394): linear ones; linear and quadratic, which makes an effect of every
option and every pair of options; linear and Gaussian. How much each counts is what makes the data likely (`gp.py`).
`trees` is gradient boosting (scikit-learn's histogram trees).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, lapack, solve_triangular

from hwnas.errors import PredictorError
from hwnas.search.accuracy_features import Encoder, SingleMatrix
from hwnas.search.gp import GaussianProcess, Kernel
from hwnas.search.problem import FloatMatrix, FloatVector
from hwnas.space import IntMatrix

FloatArray = NDArray[np.floating[Any]]

TUNING_ROWS = 400  # rows that choose hyper-parameters; all rows are then fitted with them
_SUPPORT = 2000  # rows that Gaussian kernels compare with: prediction takes as much longer as there are more
_FOLDED = 4000  # rows behind linear and quadratic kernels, of which prediction knows nothing
_JITTER = 1e-6
_MORE = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4)
_PRECISIONS = (np.float32, np.float64)
_ROUNDING = 1e-3  # of the deviation of the values: more is too much to predict in single precision, which is faster
_TREES: dict[str, Any] = {"max_iter": 150, "learning_rate": 0.1, "min_samples_leaf": 5, "early_stopping": False}


class Regression(Protocol):
    """A fitted model."""

    def predict(self, raw: SingleMatrix) -> FloatVector:
        """(n, columns) raw features of the encoder -> (n,) values on the fitted scale."""
        ...


@dataclass(frozen=True)
class Quadratic(Kernel):
    """A linear kernel squared: v (x.y)^2, a prior of all products of two features."""

    def base(self, a: FloatMatrix, b: FloatMatrix) -> FloatMatrix:
        return np.asarray(super().base(a, b) ** 2)

    def prior_variance(self, features: FloatMatrix, log_deviation: float) -> FloatVector:
        return np.asarray(np.exp(2 * log_deviation) * (features[:, self.features] ** 2).sum(axis=1) ** 2)


# Which columns they see is said by `_stacked`.
_LINEAR = Kernel("linear", slice(0), deviation_spread=1.5)
_QUADRATIC = Quadratic("linear", slice(0), deviation=0.5, deviation_spread=1.5)
_GAUSS = Kernel("gauss", slice(0), deviation=0.5, deviation_spread=1.5, length_spread=1.0)


@dataclass(frozen=True)
class Kernels:
    """Kernels on the columns of raw features @ `matrix` (raw columns, features)."""

    kernels: tuple[Kernel, ...]
    matrix: FloatMatrix


@dataclass(frozen=True)
class Bumps:
    """weights (m,) times exp(-|x - s|^2 / 2), x = raw @ `matrix` (columns, k), at (m, k) `support`."""

    matrix: FloatArray
    support: FloatArray
    weights: FloatArray

    def __call__(self, raw: SingleMatrix) -> FloatArray:
        """(n, columns) -> (n,)"""
        # |x - s|^2 as one matrix product: its squares ride along as columns
        near = _with_squares(raw @ self.matrix, first=True) @ _with_squares(self.support, first=False).T
        return np.asarray(np.exp(near, out=near) @ self.weights)


@dataclass(frozen=True)
class KernelModel:
    """The mean of a Gaussian process: level + linear (columns,) + quadratic (columns, columns) + bumps."""

    level: float
    linear: FloatArray
    quadratic: FloatArray | None
    bumps: tuple[Bumps, ...]

    def predict(self, raw: SingleMatrix) -> FloatVector:
        values = raw @ self.linear
        if self.quadratic is not None:
            values += np.einsum("ij,ij->i", raw @ self.quadratic, raw)
        for bump in self.bumps:
            values += bump(raw)
        return self.level + values.astype(np.float64)


@dataclass(frozen=True)
class TreeModel:
    """Boosted trees on what all blocks of features show."""

    matrix: FloatMatrix
    trees: Any

    def predict(self, raw: SingleMatrix) -> FloatVector:
        return np.asarray(self.trees.predict(raw @ self.matrix), dtype=np.float64)


def fit_additive(encoder: Encoder, archs: IntMatrix, values: FloatVector, seed: int) -> Regression:
    """Every option has its effect, whatever the others are."""
    return _fit_kernels(encoder, additive_kernels(encoder), archs, values, seed)


def fit_pairs(encoder: Encoder, archs: IntMatrix, values: FloatVector, seed: int) -> Regression:
    """Every option has an effect, and every two options."""
    return _fit_kernels(encoder, pair_kernels(encoder), archs, values, seed)


def fit_smooth(encoder: Encoder, archs: IntMatrix, values: FloatVector, seed: int) -> Regression:
    """Architectures alike in options, in levels, or in all else that the encoder says of them, have like accuracies."""
    return _fit_kernels(encoder, smooth_kernels(encoder), archs, values, seed)


def fit_trees(encoder: Encoder, archs: IntMatrix, values: FloatVector, seed: int) -> Regression:
    """Gradient boosting of regression trees."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    matrix = np.concatenate(list(encoder.blocks.values()), axis=1)
    trees = HistGradientBoostingRegressor(random_state=seed, **_TREES)
    return TreeModel(matrix, trees.fit(encoder.raw(archs) @ matrix, values))


def spread_rows(values: FloatVector, k: int) -> IntMatrix:
    """(n,) -> at most k rows spread evenly over the ranks of the values, the lowest and the highest among them."""
    order = np.argsort(values, kind="stable")
    return np.asarray(order[np.linspace(0, len(order) - 1, min(k, len(order))).round().astype(np.int64)])


def additive_kernels(encoder: Encoder) -> Kernels:
    """A linear kernel on each block."""
    return _stacked(encoder, [(_LINEAR, [name]) for name in encoder.blocks])


def pair_kernels(encoder: Encoder) -> Kernels:
    """Linear and quadratic kernels on each block."""
    return _stacked(encoder, [(kernel, [name]) for name in encoder.blocks for kernel in (_LINEAR, _QUADRATIC)])


def smooth_kernels(encoder: Encoder) -> Kernels:
    """Linear kernels, and Gaussian ones on options, on levels, and on the other blocks together."""
    rest = [name for name in encoder.blocks if name not in ("options", "levels")]
    groups = [[name] for name in encoder.blocks if name not in rest] + ([rest] if rest else [])
    return _stacked(encoder, [(_LINEAR, [name]) for name in encoder.blocks] + [(_GAUSS, group) for group in groups])


def _stacked(encoder: Encoder, parts: Sequence[tuple[Kernel, Sequence[str]]]) -> Kernels:
    """Every kernel gets the columns of its blocks."""
    kernels: list[Kernel] = []
    matrices: list[FloatMatrix] = []
    start = 0
    for kernel, names in parts:
        matrices += [encoder.blocks[name] for name in names]
        stop = start + sum(encoder.blocks[name].shape[1] for name in names)
        kernels.append(replace(kernel, features=slice(start, stop)))
        start = stop
    return Kernels(tuple(kernels), np.concatenate(matrices, axis=1))


def _fit_kernels(encoder: Encoder, kernels: Kernels, archs: IntMatrix, values: FloatVector, seed: int) -> Regression:
    features = encoder.raw(archs) @ kernels.matrix
    tuning = spread_rows(values, TUNING_ROWS)
    parameters = GaussianProcess.fit(kernels.kernels, features[tuning], values[tuning]).parameters
    level, scale = float(values.mean()), float(values[tuning].std()) or 1.0
    most = _SUPPORT if any(kernel.kind == "gauss" for kernel in kernels.kernels) else _FOLDED
    support = np.arange(len(archs))
    if len(archs) > most:
        support = np.sort(np.random.default_rng(seed).choice(len(archs), most, replace=False))
    weights = scale * _solve(kernels.kernels, parameters, features, (values - level) / scale, support)
    # Without noise, weights can be so large that single precision loses their sum.
    single, double = (_folded(kernels, parameters, features[support], weights, level, dtype) for dtype in _PRECISIONS)
    rows = encoder.raw(archs[tuning])
    return single if np.abs(single.predict(rows) - double.predict(rows)).max() <= _ROUNDING * scale else double


def _solve(
    kernels: Sequence[Kernel], parameters: FloatVector, features: FloatMatrix, values: FloatVector, support: IntMatrix
) -> FloatVector:
    """(m,) weights of the support rows: the exact process if they are all rows, else subset of regressors.

    Rasmussen & Williams 2006, equations 2.25 and 8.14.
    """
    chosen = features[support]
    cross = np.zeros((len(support), len(features)))
    for kernel, (deviation, length) in zip(kernels, parameters[:-1].reshape(-1, 2), strict=True):
        cross += kernel.value(kernel.base(chosen, features), deviation, length)
    noise = float(np.exp(2 * parameters[-1])) + _JITTER
    if len(support) == len(features):
        return np.asarray(cho_solve((_cholesky(cross, noise), True), values))
    # As a ridge on L^-1 k(x), L L^T the covariance of the support: that is better conditioned than equation 8.14.
    lower = _cholesky(cross[:, support], _JITTER)
    whitened = solve_triangular(lower, cross, lower=True)
    ridge = cho_solve((_cholesky(whitened @ whitened.T, noise), True), whitened @ values)
    return np.asarray(solve_triangular(lower, ridge, lower=True, trans="T"))


def _cholesky(matrix: FloatMatrix, noise: float) -> FloatMatrix:
    """The factor of a covariance with noise; with as much more as rounding asks for, where there is next to none."""
    mean = float(np.diag(matrix).mean())
    for more in _MORE:
        lower, failed = lapack.dpotrf(matrix + (noise + more * mean) * np.eye(len(matrix)), lower=True)
        if not failed:
            return np.asarray(lower)
    raise PredictorError("the covariance of the architectures cannot be inverted; are extra features very large?")


def _folded(
    kernels: Kernels,
    parameters: FloatVector,
    support: FloatMatrix,
    weights: FloatVector,
    level: float,
    dtype: type[np.floating[Any]],
) -> KernelModel:
    """The same function of raw features, without the support rows as far as kernels are linear or quadratic."""
    linear = np.zeros(len(kernels.matrix))
    quadratic: FloatMatrix | None = None
    bumps = []
    for kernel, (deviation, length) in zip(kernels.kernels, parameters[:-1].reshape(-1, 2), strict=True):
        own, seen = kernels.matrix[:, kernel.features], support[:, kernel.features]
        weighted = np.exp(2 * deviation) * weights
        if isinstance(kernel, Quadratic):
            part = own @ ((seen.T * weighted) @ seen) @ own.T
            quadratic = part if quadratic is None else quadratic + part
        elif kernel.kind == "linear":
            linear += own @ (seen.T @ weighted)
        else:
            shrink = np.exp(-length)
            bumps.append(Bumps(*(each.astype(dtype) for each in (shrink * own, shrink * seen, weighted))))
    folded = None if quadratic is None else quadratic.astype(dtype)
    return KernelModel(level, linear.astype(dtype), folded, tuple(bumps))


def _with_squares(x: FloatArray, *, first: bool) -> FloatArray:
    """(n, k) -> (n, k + 2): such that the products of the rows of two are -|x - y|^2 / 2."""
    squares = -0.5 * np.einsum("ij,ij->i", x, x)
    ones = np.ones_like(squares)
    return np.column_stack([x, squares, ones] if first else [x, ones, squares])
