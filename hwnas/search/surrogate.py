"""A regression from architectures to a score that is costly to compute, such as a zero-shot score.

Ridge regression on one-hot slots of canonical architectures, and on extra features where given: with some hundred
scored architectures, main effects are what can be estimated. How far to trust it is measured: `cv_spearman`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwnas.errors import PredictorError
from hwnas.ranks import average_ranks
from hwnas.search.problem import FloatMatrix, FloatVector
from hwnas.space import IntMatrix, SearchSpace, format_arch

Features = Callable[[IntMatrix], FloatMatrix]

_LEAST_ROWS = 5
_ALPHAS = np.logspace(-3, 4, 29)


@dataclass(frozen=True)
class ScoreModel:
    """score = intercept + a weight per slot and option + extra features; `fit` makes one.

    weights (slots, most options), extra_weights and extra_center (features,), `rows` scored architectures behind it.
    cv_spearman: rank correlation of leave-one-out predictions with the scores, 0 where either is constant.
    """

    space: SearchSpace
    weights: FloatMatrix
    intercept: float
    extra: Features | None
    extra_weights: FloatVector
    extra_center: FloatVector
    alpha: float
    rows: int
    cv_spearman: float

    @classmethod
    def fit(
        cls, space: SearchSpace, archs: IntMatrix, scores: FloatVector, extra: Features | None = None
    ) -> ScoreModel:
        """Fit (n, slots) archs to (n,) scores; `extra` maps (n, slots) to (n, features), e.g. log of the parameters.

        Rows whose score or features are not finite are left out. The ridge's alpha has the least leave-one-out error.
        Raises PredictorError if the shapes differ or fewer than 5 rows are left.
        """
        archs, scores = space.canonical(np.asarray(archs)), np.asarray(scores, dtype=np.float64)
        if scores.shape != (len(archs),):
            raise PredictorError(f"{len(archs)} architectures need as many scores, got shape {scores.shape}")
        features = _features(extra, archs)
        kept = np.isfinite(scores) & np.isfinite(features).all(axis=1)
        if kept.sum() < _LEAST_ROWS:
            raise PredictorError(
                f"only {int(kept.sum())} of {len(archs)} architectures have a finite score and finite features; a "
                f"model needs at least {_LEAST_ROWS}: score more architectures, or use another score"
            )
        archs, scores, features = archs[kept], scores[kept], features[kept]
        center = features.mean(axis=0)
        spread = features.std(axis=0)
        spread[spread <= 1e-12 * np.abs(center)] = 1.0  # a constant, but for rounding
        options = int(space.cardinalities.max())
        one_hot = (archs[:, :, None] == np.arange(options)).reshape(len(archs), -1)
        design = np.concatenate([one_hot, (features - center) / spread], axis=1)
        unit = float(np.abs(scores).max()) or 1.0  # squares of scores such as 1e200 would overflow
        coefficients, intercept, alpha, held_out = _ridge(design, scores / unit)
        weights, extra_weights = np.split(coefficients * unit, [one_hot.shape[1]])
        return cls(
            space=space,
            weights=weights.reshape(-1, options),
            intercept=intercept * unit,
            extra=extra,
            extra_weights=extra_weights / spread,
            extra_center=center,
            alpha=alpha,
            rows=len(scores),
            cv_spearman=_spearman(held_out, scores),
        )

    def predict(self, archs: IntMatrix) -> FloatVector:
        """(n, slots) architectures -> (n,) scores. Raises PredictorError if an extra feature is not finite."""
        archs = self.space.canonical(np.asarray(archs))
        features = _features(self.extra, archs)
        broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(broken):
            raise PredictorError(f"the extra features of architecture {format_arch(archs[broken[0]])} are not finite")
        of_slots: FloatVector = self.weights[np.arange(archs.shape[1]), archs].sum(axis=1)
        of_features: FloatVector = (features - self.extra_center) @ self.extra_weights
        return self.intercept + of_slots + of_features


def _features(extra: Features | None, archs: IntMatrix) -> FloatMatrix:
    if extra is None:
        return np.empty((len(archs), 0))
    features = np.asarray(extra(archs), dtype=np.float64)
    if features.ndim != 2 or len(features) != len(archs):
        raise PredictorError(f"extra features of {len(archs)} architectures are (n, features), got {features.shape}")
    return features


def _ridge(design: FloatMatrix, target: FloatVector) -> tuple[FloatVector, float, float, FloatVector]:
    """Coefficients, intercept, alpha, and (n,) leave-one-out predictions, each less the mean of the other rows.

    That mean is low where the row left out is high: kept in, it would make a model that knows nothing rank everything
    in reverse.
    """
    n = len(target)
    column_means, mean = design.mean(axis=0), target.mean()
    u, singular, vt = np.linalg.svd(design - column_means, full_matrices=False)
    projected = u.T @ (target - mean)
    residuals = []
    for alpha in _ALPHAS:
        shrink = singular**2 / (singular**2 + alpha)
        leverage = 1 / n + u**2 @ shrink
        residuals.append((target - mean - u @ (shrink * projected)) / np.maximum(1 - leverage, 1e-12))
    best = int(np.argmin([residual @ residual for residual in residuals]))
    alpha, residual = float(_ALPHAS[best]), residuals[best]
    coefficients: FloatVector = vt.T @ (singular / (singular**2 + alpha) * projected)
    means_of_others = (n * mean - target) / (n - 1)
    return coefficients, float(mean - column_means @ coefficients), alpha, target - residual - means_of_others


def _spearman(a: FloatVector, b: FloatVector) -> float:
    ranks = [average_ranks(values) for values in (a, b)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
