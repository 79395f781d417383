"""A predictor of accuracy from networks whose accuracy is known, for the search over a supernet or a benchmark.

Several regressions (`accuracy_models.py`) are compared by cross-validation; the fastest that is not clearly worse than
the best predicts. What it says of itself (root mean square error, rank correlations, intervals) was seen on networks
that were held out. The intervals are conformal (split-conformal prediction with the residuals of all folds, Vovk 2015,
"Cross-conformal predictors"): they hold for networks drawn like those of the fit, not for those that a search selects
for being predicted good, which are to be evaluated.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from pydantic import with_config
from scipy.stats import kendalltau

from hwnas.conformal import conformal_quantile
from hwnas.errors import PredictorError, SpaceError
from hwnas.ranks import average_ranks
from hwnas.saved import EXACT
from hwnas.search.accuracy_features import Encoder, Features, Presence, encoder_of
from hwnas.search.accuracy_link import Link, choose_link
from hwnas.search.accuracy_models import Regression
from hwnas.search.problem import FloatVector
from hwnas.space import IntMatrix, SearchSpace

Fit = Callable[[Encoder, IntMatrix, FloatVector, int], Regression]

MODELS = {
    "additive": "hwnas.search.accuracy_models:fit_additive",
    "pairs": "hwnas.search.accuracy_models:fit_pairs",
    "smooth": "hwnas.search.accuracy_models:fit_smooth",
    "trees": "hwnas.search.accuracy_models:fit_trees",
}
# what is compared, fastest first: the models whose mean predicts
CANDIDATES: dict[str, tuple[str, ...]] = {
    "additive": ("additive",),
    "pairs": ("pairs",),
    "smooth": ("smooth",),
    "trees": ("trees",),
    "smooth and trees": ("smooth", "trees"),
}
LEAST_ROWS = 10
_FOLDS, _FEWER_FOLDS = 10, 5
_MANY_ROWS = 500  # networks from which on fewer folds do
# A candidate is clearly worse than the best if its error is larger by this factor and this share of the deviation.
_CLEARLY, _NEGLIGIBLE = 1.03, 1e-3
_TOO_FEW = "networks with known accuracy, the fit had {n}"
_CHUNK = 2048  # architectures at once: what is compared with all rows of the fit stays in the cache


@with_config(EXACT)
@dataclass(frozen=True)
class HeldOut:
    """What a candidate predicted for networks left out of its fit: percent points, and rank correlations.

    A correlation is 0 where either side is constant.
    """

    candidate: str
    rmse: float
    kendall: float
    spearman: float


@dataclass(frozen=True)
class AccuracyPredictor:
    """Accuracy in percent of a space's architectures; `fit` makes one, `accuracy_file.py` saves it.

    archs (n, slots) and accuracy (n,) are the distinct networks of the fit; `compared` are all candidates, `chosen` one
    of their names. residuals (n,): held-out errors of the chosen one on the fitted scale.
    """

    space: SearchSpace
    archs: IntMatrix
    accuracy: FloatVector
    seed: int
    chosen: str
    compared: tuple[HeldOut, ...]
    residuals: FloatVector
    link: Link
    encoder: Encoder
    models: tuple[Regression, ...]

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        archs: IntMatrix,
        accuracy: FloatVector,
        *,
        seed: int = 0,
        extra: Features | None = None,
        candidates: Sequence[str] = tuple(CANDIDATES),
    ) -> AccuracyPredictor:
        """Fit (n, slots) archs to (n,) accuracies in percent; those of one network count once, by their mean.

        `extra` maps (n, slots) canonical architectures to (n, features) that are known of them, such as zero-shot
        scores. `candidates` are names of CANDIDATES to choose among; `seed` draws the folds. Raises PredictorError if
        accuracies are not percent, the shapes differ, or there are fewer than 10 networks; SpaceError if an
        architecture is not of the space.
        """
        unknown = sorted(set(candidates) - set(CANDIDATES))
        if unknown or not candidates:
            raise PredictorError(f"candidates are some of {', '.join(CANDIDATES)}, got {list(candidates)}")
        archs, accuracy = _distinct(_canonical(space, archs), np.asarray(accuracy, dtype=np.float64))
        encoder = encoder_of(Presence(space), archs, extra)
        link = choose_link(encoder, archs, accuracy)
        values = link.values(accuracy)
        ordered = [name for name in CANDIDATES if name in candidates]
        held_out = _cross_validate(encoder, archs, values, ordered, seed)
        chosen = _fastest_good(held_out, values)
        compared = tuple(_judge(name, link.accuracy(held_out[name]), accuracy) for name in ordered)
        models = fit_models(CANDIDATES[chosen], encoder, archs, values, seed)
        residuals = values - held_out[chosen]
        return cls(space, archs, accuracy, seed, chosen, compared, residuals, link, encoder, models)

    @property
    def held_out(self) -> HeldOut:
        """How well the chosen candidate did in cross-validation."""
        return next(each for each in self.compared if each.candidate == self.chosen)

    def predict(self, archs: IntMatrix) -> FloatVector:
        """(n, slots) architectures -> (n,) percent. Raises SpaceError if they are not of the space."""
        return self.link.accuracy(self._values(archs))

    def interval(self, archs: IntMatrix, confidence: float = 0.9) -> tuple[FloatVector, FloatVector]:
        """(n, slots) -> (n,) low and (n,) high percent, between which accuracies lie with this confidence.

        Raises PredictorError if the fit had too few networks for it.
        """
        values, bound = self._values(archs), conformal_quantile(np.abs(self.residuals), confidence, _TOO_FEW)
        return self.link.accuracy(values + bound), self.link.accuracy(values - bound)

    def _values(self, archs: IntMatrix) -> FloatVector:
        archs = _canonical(self.space, archs)
        parts = [np.empty(0)]
        for start in range(0, len(archs), _CHUNK):
            raw = self.encoder.raw(archs[start : start + _CHUNK])
            parts.append(_mean([model.predict(raw) for model in self.models]))
        return np.concatenate(parts)


def fit_models(
    names: Sequence[str], encoder: Encoder, archs: IntMatrix, values: FloatVector, seed: int
) -> tuple[Regression, ...]:
    """These models of MODELS, fitted to (n,) values on the link's scale."""
    return tuple(_fit_of(name)(encoder, archs, values, seed) for name in names)


def _fit_of(name: str) -> Fit:
    module, attribute = MODELS[name].split(":")
    return cast("Fit", getattr(importlib.import_module(module), attribute))


def _canonical(space: SearchSpace, archs: IntMatrix) -> IntMatrix:
    archs = np.asarray(archs)
    if archs.ndim != 2 or archs.shape[1] != len(space.slots) or not np.issubdtype(archs.dtype, np.integer):
        raise SpaceError(
            f"architectures of {space.name} are an integer matrix (n, {len(space.slots)}), got {archs.dtype} of shape "
            f"{archs.shape}"
        )
    outside = np.flatnonzero(((archs < 0) | (archs >= space.cardinalities)).any(axis=1))
    if len(outside):
        space.check(archs[outside[0]].tolist())  # says which slot
    return space.canonical(archs.astype(np.int64))


def _distinct(archs: IntMatrix, accuracy: FloatVector) -> tuple[IntMatrix, FloatVector]:
    """Every network once, in a fixed order, with the mean of its accuracies."""
    if accuracy.shape != (len(archs),):
        raise PredictorError(f"{len(archs)} architectures need as many accuracies, got shape {accuracy.shape}")
    wrong = np.flatnonzero(~((accuracy >= 0) & (accuracy <= 100)))
    if len(wrong):
        raise PredictorError(
            f"accuracies are percent from 0 to 100, row {wrong[0]} has {accuracy[wrong[0]]}; leave out what failed"
        )
    archs, place, counts = np.unique(archs, axis=0, return_inverse=True, return_counts=True)
    if len(archs) < LEAST_ROWS:
        raise PredictorError(
            f"{len(archs)} different networks are too few for a predictor of accuracy; evaluate at least {LEAST_ROWS}"
        )
    return archs, np.bincount(place.reshape(-1), weights=accuracy) / counts


def _cross_validate(
    whole: Encoder, archs: IntMatrix, values: FloatVector, names: Sequence[str], seed: int
) -> dict[str, FloatVector]:
    """Candidate -> (n,) values predicted by fits that had not seen them."""
    members = list(dict.fromkeys(model for name in names for model in CANDIDATES[name]))
    predicted = {model: np.empty(len(archs)) for model in members}
    folds = _FEWER_FOLDS if len(archs) >= _MANY_ROWS else _FOLDS
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(archs)), folds):
        others = np.setdiff1d(np.arange(len(archs)), fold)
        encoder = encoder_of(whole.presence, archs[others], whole.extra)
        raw = encoder.raw(archs[fold])
        fitted = fit_models(members, encoder, archs[others], values[others], seed)
        for model, regression in zip(members, fitted, strict=True):
            predicted[model][fold] = regression.predict(raw)
    return {name: _mean([predicted[model] for model in CANDIDATES[name]]) for name in names}


def _mean(predictions: Sequence[FloatVector]) -> FloatVector:
    return np.asarray(np.mean(predictions, axis=0))


def _fastest_good(held_out: dict[str, FloatVector], values: FloatVector) -> str:
    """The first candidate whose root mean square error on the fitted scale is not clearly above the least."""
    errors = {name: float(np.sqrt(((values - predicted) ** 2).mean())) for name, predicted in held_out.items()}
    most = _CLEARLY * min(errors.values()) + _NEGLIGIBLE * max(float(values.std()), _NEGLIGIBLE)
    return next(name for name, error in errors.items() if error <= most)


def _judge(name: str, predicted: FloatVector, accuracy: FloatVector) -> HeldOut:
    rmse = float(np.sqrt(((predicted - accuracy) ** 2).mean()))
    if np.ptp(predicted) == 0 or np.ptp(accuracy) == 0:
        return HeldOut(name, rmse, 0.0, 0.0)
    spearman = np.corrcoef(average_ranks(predicted), average_ranks(accuracy))[0, 1]
    return HeldOut(name, rmse, float(kendalltau(predicted, accuracy).statistic), float(spearman))
