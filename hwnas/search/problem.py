"""What a search is asked for: objectives in the user's unit and sense, and the one place where signs are flipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import RecipeError

FloatMatrix = NDArray[np.float64]
FloatVector = NDArray[np.float64]
BoolVector = NDArray[np.bool_]


@dataclass(frozen=True)
class Objective:
    """A number to minimise or maximise; `limit`, in its unit, is the most (minimised) or least (maximised) allowed."""

    name: str
    unit: str
    direction: Literal["minimize", "maximize"]
    limit: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise RecipeError("an objective needs a name, e.g. 'latency'")
        if self.direction not in ("minimize", "maximize"):
            raise RecipeError(f"objective {self.name!r}: direction is 'minimize' or 'maximize', got {self.direction!r}")
        if self.limit is not None and not math.isfinite(self.limit):
            raise RecipeError(f"objective {self.name!r}: the limit is a finite number or absent, got {self.limit}")

    @property
    def sign(self) -> float:
        """value * sign is a loss: less is better."""
        return 1.0 if self.direction == "minimize" else -1.0

    @property
    def label(self) -> str:
        """Name and unit as a reader sees them, e.g. 'latency (ms)'."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def quote(self, value: float) -> str:
        """A value with its unit, e.g. '0.42 ms'."""
        return f"{value:.4g} {self.unit}".rstrip()


def check_objectives(objectives: Sequence[Objective]) -> None:
    """Raises RecipeError when there is no objective, or two carry the same name."""
    names = [objective.name for objective in objectives]
    if not names:
        raise RecipeError("a search needs at least one objective")
    if len(set(names)) != len(names):
        raise RecipeError(f"every objective needs a name of its own, got {names}")


def to_losses(values: FloatMatrix, objectives: Sequence[Objective]) -> FloatMatrix:
    """(n, objectives) values in the user's sense -> (n, objectives) losses, all minimised. Its own inverse."""
    signs: FloatVector = np.array([objective.sign for objective in objectives])
    return _checked(values, objectives) * signs


def violations(values: FloatMatrix, objectives: Sequence[Objective]) -> FloatVector:
    """(n, objectives) values -> (n,) by how much they break the limits, relative to each limit and summed.

    0 where every limit is kept (a value at its limit keeps it), infinite where a value is NaN. A limit of 0 has no
    relative violation; its violation counts in the objective's unit.
    """
    losses = to_losses(values, objectives)
    total = np.zeros(len(losses))
    for column, objective in enumerate(objectives):
        if objective.limit is not None:
            excess = np.maximum(losses[:, column] - objective.sign * objective.limit, 0.0)
            total += excess / (abs(objective.limit) or 1.0)
    total[np.isnan(losses).any(axis=1)] = np.inf
    return total


def _checked(values: FloatMatrix, objectives: Sequence[Objective]) -> FloatMatrix:
    check_objectives(objectives)
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(objectives):
        raise RecipeError(
            f"values must be (n, {len(objectives)}), one column each for {[o.name for o in objectives]}; "
            f"got shape {values.shape}"
        )
    return values
