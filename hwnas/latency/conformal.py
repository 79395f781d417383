"""Intervals that hold with a stated confidence, from errors on networks that were never fitted.

Split-conformal prediction (Vovk et al. 2005; Lei et al. 2018) on the log of measured / predicted, divided by a
difficulty that is known before measuring (normalised as in Papadopoulos et al. 2008): distribution-free for networks
drawn like the held-out ones. Networks that a search selects for being predicted fast are not drawn like random ones. So
there are groups of held-out networks, random and searched, and a bound is one that holds for each of them (as those of
Mondrian conformal prediction do, Vovk et al. 2003), whichever a new network is of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.conformal import conformal_quantile
from hwnas.errors import PredictorError

FloatVector = NDArray[np.float64]

_TOO_FEW = "held-out networks, the table has {n}; profile with more (profile.held_out)"


@dataclass(frozen=True)
class Conformal:
    """Errors of held-out networks, group by group: (n,) log(measured / predicted) over the (n,) difficulties."""

    groups: tuple[FloatVector, ...]

    @classmethod
    def of(
        cls, predicted_ms: FloatVector, measured_ms: FloatVector, difficulty: FloatVector, kinds: Sequence[str]
    ) -> Conformal:
        """From (n,) predictions, measurements and difficulties of the held-out networks, all above zero, and kinds."""
        errors = np.log(measured_ms / predicted_ms) / difficulty
        found = np.array(kinds, dtype=str)
        return cls(tuple(errors[found == kind] for kind in sorted({*kinds})) or (errors,))

    def two_sided(self, confidence: float) -> float:
        """The bound on |log(measured / predicted)| / difficulty; raises PredictorError with too few networks."""
        return _bound([np.abs(errors) for errors in self.groups], confidence)

    def upper(self, confidence: float) -> float:
        """The bound on log(measured / predicted) / difficulty; raises PredictorError with too few networks."""
        return _bound(self.groups, confidence)


def _bound(groups: Sequence[FloatVector], confidence: float) -> float:
    """What holds for all networks together, and for those of every group with enough of them to say so."""
    bounds = [conformal_quantile(np.concatenate(groups), confidence, _TOO_FEW)]
    for errors in groups:
        with contextlib.suppress(PredictorError):
            bounds.append(conformal_quantile(errors, confidence, _TOO_FEW))
    return max(bounds)
