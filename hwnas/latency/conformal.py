"""Intervals that hold with a stated confidence, from errors on networks that were never fitted.

Split-conformal prediction (Vovk et al. 2005; Lei et al. 2018) on the log of measured / predicted, divided by a
difficulty that is known before measuring (normalised as in Papadopoulos et al. 2008): distribution-free for networks
drawn like the held-out ones. Networks that a search selects for being predicted fast are not drawn like them; measure
what is deployed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.conformal import conformal_quantile

FloatVector = NDArray[np.float64]

_TOO_FEW = "held-out networks, the table has {n}; profile with more (profile.held_out)"


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
        return conformal_quantile(np.abs(self.errors), confidence, _TOO_FEW)

    def upper(self, confidence: float) -> float:
        """The bound on log(measured / predicted) / difficulty; raises PredictorError with too few networks."""
        return conformal_quantile(self.errors, confidence, _TOO_FEW)
