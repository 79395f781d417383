"""Intervals that hold with a stated confidence, from errors on networks that were never fitted.

Split-conformal prediction (Vovk et al. 2005; Lei et al. 2018) on the log of measured / predicted, divided by a
difficulty that is known before measuring (normalised as in Papadopoulos et al. 2008): distribution-free for networks
drawn like the held-out ones. Networks that a search selects for being predicted fast are not drawn like them; measure
what is deployed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import PredictorError

FloatVector = NDArray[np.float64]


@dataclass(frozen=True)
class Conformal:
    """Errors of held-out networks: (n,) log(measured / predicted) over the (n,) difficulties."""

    errors: FloatVector

    @classmethod
    def of(cls, predicted_ms: FloatVector, measured_ms: FloatVector, difficulty: FloatVector) -> Conformal:
        """From (n,) predictions, measurements and difficulties of the held-out networks, all above zero."""
        return cls(np.asarray(np.log(measured_ms / predicted_ms) / difficulty))

    def two_sided(self, confidence: float) -> float:
        """The bound on |log(measured / predicted)| / difficulty; raises PredictorError with too few networks."""
        return self._quantile(np.abs(self.errors), confidence)

    def upper(self, confidence: float) -> float:
        """The bound on log(measured / predicted) / difficulty; raises PredictorError with too few networks."""
        return self._quantile(self.errors, confidence)

    def _quantile(self, scores: FloatVector, confidence: float) -> float:
        if not 0 < confidence < 1:
            raise PredictorError(f"confidence must lie between 0 and 1, got {confidence}")
        # Rounded because 0.9 / (1 - 0.9) is a little above 9, and a whole rank must stay whole.
        rank = math.ceil(round((len(scores) + 1) * confidence, 9))
        if rank > len(scores):
            needed = math.ceil(round(confidence / (1 - confidence), 9))
            raise PredictorError(
                f"confidence {confidence:g} needs at least {needed} held-out networks, the table has {len(scores)}; "
                "profile with more (profile.held_out)"
            )
        return float(np.sort(scores)[rank - 1])
