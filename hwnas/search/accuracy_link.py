"""The scale on which accuracy is fitted: the logarithm of what lacks to just beyond the best, as in `warped.py`.

Options add up better there than in percent, since every network comes closer to the same ceiling; it also tells apart
the best, which a search is about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwnas.search.accuracy_features import Encoder
from hwnas.search.accuracy_models import TUNING_ROWS, smooth_kernels, spread_rows
from hwnas.search.problem import FloatVector
from hwnas.search.warped import WarpedModel
from hwnas.space import IntMatrix

_BEYOND = 0.5  # how far below the worst accuracy that was seen a prediction may lie, as a share of their range


@dataclass(frozen=True)
class Link:
    """value = log(best - accuracy + shift); the `worst` accuracy seen bounds predictions from below. All in percent."""

    best: float
    shift: float
    worst: float

    def values(self, accuracy: FloatVector) -> FloatVector:
        """(n,) percent, at most `best` -> (n,) values; less is better."""
        return np.asarray(np.log(self.best - accuracy + self.shift))

    def accuracy(self, values: FloatVector) -> FloatVector:
        """(n,) values -> (n,) percent."""
        lowest = self.worst - _BEYOND * (self.best - self.worst)
        lacking = np.exp(np.minimum(values, np.log(self.best - lowest + self.shift)))
        return np.clip(self.best + self.shift - lacking, 0.0, 100.0)


def choose_link(encoder: Encoder, archs: IntMatrix, accuracy: FloatVector) -> Link:
    """The link under which a smooth process makes (n,) accuracies likeliest."""
    kernels = smooth_kernels(encoder)
    some = spread_rows(-accuracy, TUNING_ROWS)
    model = WarpedModel.fit(kernels.kernels, encoder.raw(archs[some]) @ kernels.matrix, -accuracy[some])
    return Link(-model.best, model.shift, float(accuracy.min()))
