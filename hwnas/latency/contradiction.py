"""A latency table that contradicts itself: rows that cannot be, given the whole networks measured with them.

Every row can be a positive number and one of them still be absurd: typed by hand, of another unit, of a broken timer.
The whole networks in the table tell: none of its own is predicted worse than the table says of itself, with room.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import PredictorError

FloatVector = NDArray[np.float64]
FloatMatrix = NDArray[np.float64]

# A network may be off by this fraction; where the table states its largest error, by that many times it and a little.
OFF = 0.5
TIMES = 3.0
LITTLE = 0.1
# No block takes longer than this many of the slowest whole network.
SLOWEST = 10.0
# A row explains a contradiction if changing it alone takes away this part of the squared errors.
EXPLAINED = 0.95


def require_consistent(
    keys: Sequence[str],
    rows_ms: FloatVector,
    counts: FloatMatrix,
    predicted_ms: FloatVector,
    measured_ms: FloatVector,
    names: Sequence[str],
    max_error: float | None = None,
) -> None:
    """Raise PredictorError if a table's rows cannot belong to its own whole networks; it names the likeliest row.

    keys, rows_ms: (blocks,); counts: (n, blocks) how often each block is in each of the table's networks; predicted_ms
    and measured_ms: (n,); names: of the networks; max_error: that of the table's validation.
    """
    if len(measured_ms) == 0:
        return
    slowest = float(measured_ms.max())
    longest = int(np.argmax(rows_ms))
    if rows_ms[longest] > SLOWEST * slowest:
        raise PredictorError(
            f"the latency table contradicts itself: its row {keys[longest]} is {rows_ms[longest]:.4g} ms, its slowest "
            f"whole network takes {slowest:.4g} ms. {_ADVICE}"
        )
    errors = predicted_ms / measured_ms
    off = np.abs(np.log(errors))
    worst = int(np.argmax(off))
    if off[worst] <= np.log1p(OFF if max_error is None else LITTLE + TIMES * max_error):
        return
    raise PredictorError(
        f"the latency table contradicts itself: its rows add up to {predicted_ms[worst]:.4g} ms for the network "
        f"{names[worst]}, which took {measured_ms[worst]:.4g} ms when it was measured"
        f"{_explanation(keys, rows_ms, counts / measured_ms[:, None], errors - 1)}. {_ADVICE}"
    )


def _explanation(keys: Sequence[str], rows_ms: FloatVector, shares: FloatMatrix, errors: FloatVector) -> str:
    """The row that, changed alone, leaves the smallest squared relative errors (n,) of all networks."""
    columns = shares * rows_ms
    norms = np.maximum((columns**2).sum(axis=0), np.finfo(float).tiny)
    # Least squares for one row: it times (1 - part). No row can be taken away by more than all of it.
    parts = np.minimum(columns.T @ errors / norms, 1.0)
    left = ((errors[:, None] - columns * parts) ** 2).sum(axis=0)
    best = int(np.argmin(left))
    if left[best] > (1 - EXPLAINED) * float(errors @ errors):
        return "; no single row explains it"
    fits = rows_ms[best] * (1 - parts[best])
    return f"; its row {keys[best]} explains it best: it is {rows_ms[best]:.4g} ms, {fits:.4g} ms would fit"


_ADVICE = "Measure it again: hwnas profile --fresh RECIPE, or restore the file"
