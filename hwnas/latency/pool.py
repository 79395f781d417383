"""A pool of architectures and what the devices already known need for them: where a transfer starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import PredictorError
from hwnas.space import IntMatrix


@dataclass(frozen=True)
class Pool:
    """n architectures and what the source devices need for them.

    archs: (n, slots) int option indices; options: (slots,) number of options of each slot; source_ms: (n, sources),
    measured or predicted, of any scale; no source at all is `np.empty((n, 0))`. Raises PredictorError where they do
    not fit each other.
    """

    archs: IntMatrix
    options: Sequence[int] | IntMatrix
    source_ms: NDArray[np.float64]
    source_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        archs, options = np.asarray(self.archs), np.asarray(self.options)
        ms = np.asarray(self.source_ms, dtype=np.float64)
        if archs.ndim != 2 or not np.issubdtype(archs.dtype, np.integer) or len(archs) == 0:
            raise PredictorError(f"a pool is an (n, slots) matrix of option indices, got {archs.dtype} {archs.shape}")
        if options.shape != archs.shape[1:]:
            raise PredictorError(f"the pool has {archs.shape[1]} slots, number of options given for {options.shape}")
        wrong = (archs < 0) | (archs >= options)
        if wrong.any():
            row, slot = (int(index) for index in np.argwhere(wrong)[0])
            raise PredictorError(
                f"slot {slot} has options 0..{options[slot] - 1}, architecture {row} of the pool has {archs[row, slot]}"
            )
        if ms.ndim != 2 or len(ms) != len(archs):
            raise PredictorError(
                f"the pool has {len(archs)} architectures, so source latencies are ({len(archs)}, sources), "
                f"got {ms.shape}"
            )
        names = self.source_names or tuple(f"source {column}" for column in range(ms.shape[1]))
        if len(names) != ms.shape[1]:
            raise PredictorError(f"{ms.shape[1]} source devices with latencies, {len(names)} with a name: {names}")
        bad = ~(np.isfinite(ms) & (ms > 0))
        if bad.any():
            row, column = (int(index) for index in np.argwhere(bad)[0])
            raise PredictorError(
                f"source device {names[column]!r} has {ms[row, column]:g} ms for architecture {row}; latencies are "
                "above zero: leave the device or the architecture out"
            )
        for name, value in {"archs": archs.astype(np.int64), "options": options, "source_ms": ms}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "source_names", names)

    def __len__(self) -> int:
        return len(self.archs)

    def take(self, rows: Sequence[int] | IntMatrix) -> Pool:
        """Some of the architectures."""
        return replace(self, archs=self.archs[np.asarray(rows)], source_ms=self.source_ms[np.asarray(rows)])


def check_rows(pool: Pool, rows: IntMatrix) -> None:
    """Raises PredictorError unless rows are (k,) indices of the pool."""
    if rows.ndim != 1 or (len(rows) and not np.issubdtype(rows.dtype, np.integer)):
        raise PredictorError(
            f"measured networks are given as (k,) row numbers of the pool, got {rows.dtype} {rows.shape}"
        )
    outside = rows[(rows < 0) | (rows >= len(pool))]
    if len(outside):
        raise PredictorError(f"the pool has rows 0..{len(pool) - 1}, got row {outside[0]}")
