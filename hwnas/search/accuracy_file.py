"""An accuracy predictor as a JSON file: what it was fitted to and what was chosen; reading it fits that once more.

No code travels in it (no pickle). The fit is deterministic; predictions that are saved along tell whether it came out
the same where the file is read, with other libraries or on another processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import JsonValue, with_config

from hwnas.errors import PredictorError
from hwnas.saved import EXACT, from_text, to_text
from hwnas.search.accuracy import CANDIDATES, AccuracyPredictor, HeldOut, fit_models
from hwnas.search.accuracy_features import Features, Presence, encoder_of
from hwnas.search.accuracy_link import Link
from hwnas.space import SearchSpace, format_arch, parse_arch
from hwnas.spaces import make_space

SCHEMA: Literal["hwnas-accuracy"] = "hwnas-accuracy"
VERSION: Literal[1] = 1
_CHECKED = 20  # networks whose predictions are saved along
_TOLERANCE = 0.1  # by how much they may differ, as a share of the held-out error


@with_config(EXACT)
@dataclass(frozen=True)
class SavedAccuracy:
    """The file. Accuracies are percent; `has_extra` tells of extra features, whose function is not saved."""

    schema: Literal["hwnas-accuracy"]
    version: Literal[1]
    space: str
    arguments: dict[str, JsonValue]
    has_extra: bool
    seed: int
    chosen: str
    best: float
    shift: float
    worst: float
    compared: tuple[HeldOut, ...]
    archs: tuple[str, ...]
    accuracy: tuple[float, ...]
    residuals: tuple[float, ...]
    predicted: tuple[float, ...]


def accuracy_to_json(model: AccuracyPredictor) -> str:
    """An accuracy predictor as JSON text."""
    link, some = model.link, model.archs[:_CHECKED]
    saved = SavedAccuracy(
        schema=SCHEMA,
        version=VERSION,
        space=model.space.name,
        arguments=dict(model.space.config),
        has_extra=model.encoder.extra is not None,
        seed=model.seed,
        chosen=model.chosen,
        best=link.best,
        shift=link.shift,
        worst=link.worst,
        compared=model.compared,
        archs=tuple(format_arch(arch) for arch in model.archs),
        accuracy=tuple(model.accuracy.tolist()),
        residuals=tuple(model.residuals.tolist()),
        predicted=tuple(model.predict(some).tolist()),
    )
    return to_text(saved, PredictorError, "the accuracy predictor to be saved")


def accuracy_from_json(
    text: str,
    *,
    space: SearchSpace | None = None,
    extra: Features | None = None,
    source: str = "the accuracy predictor",
) -> AccuracyPredictor:
    """The inverse of `accuracy_to_json`; `source` is what errors call the text.

    `space` is needed for a space that is not one of `hwnas.spaces`, and `extra` if the predictor was fitted with one.
    Raises PredictorError if the text is not such a predictor, if it is for another space or needs extra features, or if
    it predicts something else here than where it was saved.
    """
    saved = from_text(SavedAccuracy, text, PredictorError, source)
    if saved.chosen not in CANDIDATES or not len(saved.archs) == len(saved.accuracy) == len(saved.residuals):
        raise PredictorError(f"{source} cannot be used: its parts do not belong together; fit it again")
    if saved.has_extra != (extra is not None):
        word = "needs the extra features that it was" if saved.has_extra else "takes no extra features, it was not"
        raise PredictorError(f"{source} {word} fitted with; give extra= as for the fit")
    space = make_space(saved.space, saved.arguments) if space is None else space
    if space.name != saved.space or dict(space.config) != saved.arguments:
        raise PredictorError(f"{source} is for the space {saved.space} with {saved.arguments}, not for this one")
    archs = np.array([space.check(parse_arch(arch)) for arch in saved.archs], dtype=np.int64)
    accuracy = np.array(saved.accuracy)
    link = Link(saved.best, saved.shift, saved.worst)
    encoder = encoder_of(Presence(space), archs, extra)
    models = fit_models(CANDIDATES[saved.chosen], encoder, archs, link.values(accuracy), saved.seed)
    model = AccuracyPredictor(
        space=space,
        archs=archs,
        accuracy=accuracy,
        seed=saved.seed,
        chosen=saved.chosen,
        compared=saved.compared,
        residuals=np.array(saved.residuals),
        link=link,
        encoder=encoder,
        models=models,
    )
    _check(model, saved, source)
    return model


def _check(model: AccuracyPredictor, saved: SavedAccuracy, source: str) -> None:
    found = model.predict(model.archs[:_CHECKED])
    away = float(np.abs(found - np.array(saved.predicted)).max())
    if away > _TOLERANCE * model.held_out.rmse + 1e-3:
        raise PredictorError(
            f"{source} predicts up to {away:.3g} percent points other accuracies here than where it was saved; fit it "
            "again here"
        )
