"""Predicts the latency of architectures from a latency table: an intercept, a row for each block, and fusions.

ms = intercept + the sum over the positions of the table's row for the block that stands there + what the runtime fuses
and shares across blocks, where that depends on the architecture (`fusion.py`). Intervals: `conformal.py`, from the
table's held-out networks.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import MissingRowError, PredictorError, SpaceError
from hwnas.latency.conformal import Conformal
from hwnas.latency.contradiction import require_consistent
from hwnas.latency.fusion import FusionCounts
from hwnas.latency.index import BlockIndex
from hwnas.space import IntMatrix, SearchSpace, format_arch, parse_arch
from hwprof.table import HELD_OUT, LatencyTable
from hwprof.target import Plan

FloatVector = NDArray[np.float64]

# What a measured row and the measurement it is compared with may be off by, as a fraction: standard errors above are
# refused.
_MEASURED = Plan().max_standard_error
# What a block may take more or less in a network than on average, as a fraction.
_ROW = 0.1


class LatencyPredictor(Protocol):
    """Predicts the latency of a space's architectures on one target, many at a time, with intervals."""

    def predict_ms(self, archs: IntMatrix) -> FloatVector:
        """(n, slots) int -> (n,) latency in ms."""

    def interval_ms(self, archs: IntMatrix, confidence: float = 0.9) -> tuple[FloatVector, FloatVector]:
        """(n, slots) int -> two (n,): bounds in ms that hold the measured latency with the given confidence."""

    def upper_ms(self, archs: IntMatrix, confidence: float) -> FloatVector:
        """(n, slots) int -> (n,): what the measured latency stays below with the given confidence."""


class TablePredictor:
    """Latency in ms of a space's architectures, from a table measured for one target.

    `costs_ms[p]` holds the cost at position p of every combination of the options of that position's slots
    (last slot fastest). Where the table has no fusions (`additive`), `intercept_ms` plus one entry per position is the
    prediction: what differentiable searches need. Raises MissingRowError if a block of the space has no row,
    PredictorError if the table's networks are not of this space.
    """

    def __init__(self, space: SearchSpace, table: LatencyTable) -> None:
        self.space, self.table = space, table
        self.index = BlockIndex(space)
        missing = [key for key in self.index.keys if key not in table.rows]
        if missing:
            raise MissingRowError(_missing_message(missing, space, table))
        rows = [table.rows[key] for key in self.index.keys]
        self.intercept_ms = table.intercept_ms
        self.costs_ms = self.index.costs(np.array([row.ms for row in rows]))
        self._estimated_ms = self.index.costs(
            np.array([row.ms * row.spread * (row.origin == "estimated") for row in rows])
        )
        self._fusions = FusionCounts(space, tuple(table.fusion_ms))
        self._fusion_ms = np.array(list(table.fusion_ms.values()), dtype=np.float64)
        self._conformal = self._calibrated()

    @property
    def additive(self) -> bool:
        """Whether the prediction is a sum over the positions."""
        return len(self._fusion_ms) == 0

    def predict_ms(self, archs: IntMatrix) -> FloatVector:
        """(n, slots) int -> (n,) latency in ms. Raises PredictorError if the table gives zero or less for one."""
        return self._predict(self.space.canonical(archs))

    def interval_ms(self, archs: IntMatrix, confidence: float = 0.9) -> tuple[FloatVector, FloatVector]:
        """(n, slots) int -> two (n,): bounds in ms that hold the measured latency with the given confidence.

        Raises PredictorError if the table has too few held-out networks for that confidence.
        """
        archs = self.space.canonical(archs)
        predicted = self._predict(archs)
        factor = np.exp(self._conformal.two_sided(confidence) * self._difficulty(archs, predicted))
        return predicted / factor, predicted * factor

    def upper_ms(self, archs: IntMatrix, confidence: float) -> FloatVector:
        """(n, slots) int -> (n,): what the measured latency stays below with the given confidence.

        Raises PredictorError if the table has too few held-out networks for that confidence.
        """
        archs = self.space.canonical(archs)
        predicted = self._predict(archs)
        return np.asarray(predicted * np.exp(self._conformal.upper(confidence) * self._difficulty(archs, predicted)))

    def _predict(self, archs: IntMatrix) -> FloatVector:
        ms = self.intercept_ms + self.index.total(archs, self.costs_ms) + self._fusions(archs) @ self._fusion_ms
        if (ms <= 0).any():
            worst = int(np.argmin(ms))
            raise PredictorError(
                f"the table predicts {ms[worst]:.4g} ms for {format_arch(archs[worst])}: its intercept of "
                f"{self.intercept_ms:.4g} ms does not fit networks this small; profile again with more (profile.fit)"
            )
        return np.asarray(ms)

    def _difficulty(self, archs: IntMatrix, predicted_ms: FloatVector) -> FloatVector:
        """(n,) what predictions may be off by, as a fraction: the measurements, the rows, and those only estimated."""
        # What a block takes in one network and another differs by itself, so it averages out over many blocks.
        rows = _ROW * np.sqrt(self.index.total(archs, [costs**2 for costs in self.costs_ms])) / predicted_ms
        # One regression estimated them all, so their errors go together and add up.
        return np.hypot(np.hypot(_MEASURED, rows), self.index.total(archs, self._estimated_ms) / predicted_ms)

    def _calibrated(self) -> Conformal:
        """The errors of the table's own networks: none may contradict its rows, and the held-out ones say the rest."""
        models = self.table.models
        require_space(self.space, self.table)
        try:
            named = [self.space.check(parse_arch(model.name)) for model in models]
        except SpaceError as error:
            raise PredictorError(
                f"the table was measured with networks of another space than this {self.space.name} ({error}); "
                "profile this space"
            ) from error
        archs = np.array(named, dtype=np.int64).reshape(len(named), len(self.space.slots))
        validation = self.table.validation
        with np.errstate(over="ignore"):  # an absurd row is what is looked for
            predicted = self._predict(archs)
            require_consistent(
                self.index.keys,
                np.array([self.table.rows[key].ms for key in self.index.keys]),
                self.index.counts(archs),
                predicted,
                np.array([model.ms for model in models]),
                [model.name for model in models],
                None if validation is None else validation.max_error,
            )
        held_out = np.array([model.role in HELD_OUT for model in models], dtype=bool)
        # A prediction is for another session than the table's, as the second one was.
        measured = np.array([model.ms if model.again_ms is None else model.again_ms for model in models])
        difficulty = self._difficulty(archs, predicted)
        kinds = [model.role for model in models if model.role in HELD_OUT]
        return Conformal.of(predicted[held_out], measured[held_out], difficulty[held_out], kinds)


def require_space(space: SearchSpace, table: LatencyTable) -> None:
    # The option indices of the table's networks mean nothing in a space of other arguments.
    measured = table.provenance.get("space", {})
    if not isinstance(measured, dict):
        raise PredictorError(f"the latency table's provenance says space = {measured!r}, no space; profile again")
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
