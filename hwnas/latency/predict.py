"""Predicts the latency of architectures from a latency table: an intercept and a row for each block.

ms = intercept + the sum over the positions of the table's row for the block that stands there. The interval is
split-conformal (Vovk et al. 2005; Lei et al. 2018): the quantile of the relative errors on held-out networks that were
measured with the table and never fitted.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import MissingRowError, PredictorError, SpaceError
from hwnas.latency.index import BlockIndex
from hwnas.space import IntMatrix, SearchSpace, format_arch, parse_arch
from hwprof.table import LatencyTable

FloatVector = NDArray[np.float64]


class AdditivePredictor:
    """Latency in ms of a space's architectures, from a table measured for one target.

    `costs_ms[p]` holds the cost at position p of every combination of the options of that position's slots
    (last slot fastest), so `intercept_ms` plus one entry per position is the prediction: what differentiable searches
    need. Raises MissingRowError if a block of the space has no row, PredictorError if the table's networks are not of
    this space.
    """

    def __init__(self, space: SearchSpace, table: LatencyTable) -> None:
        self.space, self.table = space, table
        self.index = BlockIndex(space)
        missing = [key for key in self.index.keys if key not in table.rows]
        if missing:
            raise MissingRowError(_missing_message(missing, space, table))
        rows = np.array([table.rows[key].ms for key in self.index.keys])
        self.intercept_ms = table.intercept_ms
        self.costs_ms = self.index.costs(rows)
        self._errors = self._held_out_errors()

    def predict_ms(self, archs: IntMatrix) -> FloatVector:
        """(n, slots) int -> (n,) latency in ms. Raises PredictorError if the table gives zero or less for one."""
        ms = self.intercept_ms + self.index.total(self.space.canonical(archs), self.costs_ms)
        if (ms <= 0).any():
            worst = int(np.argmin(ms))
            raise PredictorError(
                f"the table predicts {ms[worst]:.4g} ms for {format_arch(archs[worst])}: its intercept of "
                f"{self.intercept_ms:.4g} ms does not fit networks this small; profile again with more (profile.fit)"
            )
        return ms

    def interval_ms(self, archs: IntMatrix, confidence: float = 0.9) -> tuple[FloatVector, FloatVector]:
        """(n, slots) int -> two (n,): bounds in ms that hold the measured latency with the given confidence.

        Raises PredictorError if the table has too few held-out networks for that confidence.
        """
        predicted = self.predict_ms(archs)
        width = self.relative_width(confidence)
        return predicted / (1 + width), predicted * (1 + width)

    def relative_width(self, confidence: float) -> float:
        """The bound w on |log(measured / predicted)|, as a fraction, that holds with the given confidence."""
        if not 0 < confidence < 1:
            raise PredictorError(f"confidence must lie between 0 and 1, got {confidence}")
        # Rounded because 0.9 / (1 - 0.9) is a little above 9, and a whole rank must stay whole.
        rank = math.ceil(round((len(self._errors) + 1) * confidence, 9))
        if rank > len(self._errors):
            needed = math.ceil(round(confidence / (1 - confidence), 9))
            raise PredictorError(
                f"confidence {confidence:g} needs at least {needed} held-out networks, the table has "
                f"{len(self._errors)}; profile with more (profile.held_out)"
            )
        return float(np.expm1(np.sort(self._errors)[rank - 1]))

    def _held_out_errors(self) -> FloatVector:
        held_out = [model for model in self.table.models if model.role == "held-out"]
        _require_space(self.space, self.table)
        try:
            archs = [self.space.check(parse_arch(model.name)) for model in held_out]
        except SpaceError as error:
            raise PredictorError(
                f"the table was measured with networks of another space than this {self.space.name} ({error}); "
                "profile this space"
            ) from error
        measured = np.array([model.ms for model in held_out])
        predicted = self.predict_ms(np.array(archs, dtype=np.int64).reshape(len(archs), len(self.space.slots)))
        return np.abs(np.log(measured / predicted))


def _require_space(space: SearchSpace, table: LatencyTable) -> None:
    # The option indices of the table's networks mean nothing in a space of other arguments.
    measured: dict[str, Any] = table.provenance.get("space", {})
    wanted = json.loads(json.dumps({"name": space.name, **space.config}))
    differences = [
        f"{name} is {measured[name]!r} in the table, {wanted.get(name)!r} wanted"
        for name in measured
        if measured[name] != wanted.get(name)
    ]
    if differences:
        raise PredictorError(
            f"the latency table was measured with networks of another space than this {space.name}: "
            f"{'; '.join(differences)}. Profile this space: hwnas profile RECIPE.toml"
        )


def _missing_message(missing: Sequence[str], space: SearchSpace, table: LatencyTable) -> str:
    nearest = difflib.get_close_matches(missing[0], table.rows, n=2, cutoff=0.0)
    return (
        f"the latency table has no row for {missing[0]}"
        + (f" and {len(missing) - 1} more blocks" if missing[1:] else "")
        + f" of {space.name}; nearest rows: {', '.join(nearest) or 'none'}. "
        "Measure this space: hwnas profile RECIPE.toml"
    )
