"""Split-conformal prediction: a bound that a new error keeps as often as asked, however errors are distributed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import PredictorError


def conformal_quantile(errors: NDArray[np.float64], confidence: float, too_few: str) -> float:
    """(n,) errors of held-out networks -> the bound that a new one keeps with this confidence (Lei et al. 2018).

    Raises PredictorError if there are too few of them; `too_few` says of what, and what to do, with `{n}` for how many
    there are.
    """
    if not 0 < confidence < 1:
        raise PredictorError(f"confidence must lie between 0 and 1, got {confidence}")
    # Rounded because 0.9 / (1 - 0.9) is a little above 9, and a whole rank must stay whole.
    rank = math.ceil(round((len(errors) + 1) * confidence, 9))
    if rank > len(errors):
        needed = math.ceil(round(confidence / (1 - confidence), 9))
        raise PredictorError(f"confidence {confidence:g} needs at least {needed} {too_few.format(n=len(errors))}")
    return float(np.sort(errors)[rank - 1])
