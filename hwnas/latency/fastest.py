"""The latency of architectures that may run in any of several precisions: in the one in which each is fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hwnas.latency.index import BlockIndex
from hwnas.latency.predict import FloatVector, LatencyPredictor
from hwnas.space import IntMatrix


class IndexedPredictor(LatencyPredictor, Protocol):
    """A predictor that knows the blocks of its space."""

    index: BlockIndex


class FastestPredictor:
    """For each architecture the predictor, of several for one space, that predicts least; a `LatencyPredictor`."""

    additive = False

    def __init__(self, predictors: Sequence[IndexedPredictor]) -> None:
        self._predictors = predictors
        self.index = predictors[0].index

    def predict_ms(self, archs: IntMatrix) -> FloatVector:
        """(n, slots) int -> (n,) latency in ms."""
        return np.asarray(self._all_ms(archs).min(axis=0))

    def fastest(self, archs: IntMatrix) -> list[int]:
        """(n, slots) int -> which predictor predicts least for each; the first of equals."""
        return [int(number) for number in self._all_ms(archs).argmin(axis=0)]

    def interval_ms(self, archs: IntMatrix, confidence: float = 0.9) -> tuple[FloatVector, FloatVector]:
        """(n, slots) int -> two (n,): the bounds of the prediction that is least."""
        bounds = np.array([predictor.interval_ms(archs, confidence) for predictor in self._predictors])
        low, high = bounds[self.fastest(archs), :, np.arange(len(archs))].T
        return low, high

    def upper_ms(self, archs: IntMatrix, confidence: float) -> FloatVector:
        """(n, slots) int -> (n,): the least of the bounds that measured latencies stay below."""
        bounds = np.array([predictor.upper_ms(archs, confidence) for predictor in self._predictors])
        return np.asarray(bounds.min(axis=0))

    def _all_ms(self, archs: IntMatrix) -> FloatVector:
        """(predictors, n) ms."""
        return np.array([predictor.predict_ms(archs) for predictor in self._predictors])
