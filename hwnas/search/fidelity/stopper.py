"""What a rule that stops trainings sees and says.

All numbers are in the user's unit and sense (`problem.Objective`). Exactly one objective is learned: the one that a
training's `known` does not name, whose values along the epochs are its `curve`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from hwnas.errors import RecipeError
from hwnas.search.problem import FloatMatrix, FloatVector, Objective, check_objectives, violations
from hwnas.space import Arch, SearchSpace


@dataclass(frozen=True)
class Training:
    """A training as far as it is.

    `number` is its place in the order of the trainings, from 0, and its identity. `known`: objective name -> value, for
    the objectives known before training, such as latency. `curve[i]` is the learned objective after epoch i + 1; NaN
    where it was not evaluated. `finished`: it ran to its end, so that its last value is final; false for one that runs,
    or was stopped or broken off. `features`: what else describes the network, such as `one_hot`; as many for all.
    """

    number: int
    known: Mapping[str, float]
    curve: tuple[float, ...] = ()
    finished: bool = False
    features: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.number < 0:
            raise RecipeError(f"trainings are numbered from 0, got {self.number}")
        for name, value in self.known.items():
            if not math.isfinite(value):
                raise RecipeError(f"training {self.number}: known values are finite numbers, {name} is {value}")
        if self.finished and not (self.curve and math.isfinite(self.curve[-1])):
            raise RecipeError(f"training {self.number} is finished without a last value, its curve: {self.curve}")

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        return len(self.curve)

    def value_at(self, epoch: int) -> float:
        """The learned objective after that epoch, counted from 1; NaN if it is not known."""
        return self.curve[epoch - 1] if 0 < epoch <= len(self.curve) else math.nan

    def until(self, epoch: int) -> Training:
        """This training as it was after that epoch."""
        done = self.curve[:epoch]
        return replace(self, curve=done, finished=self.finished and len(done) == len(self.curve))


@dataclass(frozen=True)
class Decision:
    """Whether to stop a training now, and why or why not, as a sentence for the record of the run."""

    stop: bool
    reason: str


class Stopper(Protocol):
    """A rule that stops trainings. Frozen: a decision follows from the arguments alone."""

    def __init__(self, *, max_epochs: int) -> None: ...

    def decide(self, training: Training, others: Sequence[Training], objectives: Sequence[Objective]) -> Decision:
        """Whether `training` should end after the epochs it has done.

        To be asked after every epoch, with all other trainings as far as they are now: finished, stopped and running
        ones, in any order; the training itself may be among them. Raises RecipeError if the objectives and what is
        known of the trainings do not fit.
        """


def one_hot(space: SearchSpace, arch: Arch) -> tuple[float, ...]:
    """An architecture as `features`: for every slot a 1 at the option that it takes, 0 at the others."""
    return tuple(
        float(option == chosen)
        for slot, chosen in zip(space.slots, space.check(arch), strict=True)
        for option in range(len(slot.options))
    )


def check_settings(rule: str, settings: Sequence[tuple[str, object, bool, str]]) -> None:
    """Raises RecipeError for the first (name, value, whether it can be used, what is expected) that is no good."""
    for name, value, good, expected in settings:
        if not good:
            raise RecipeError(f"rule {rule}: {name} must be {expected}, got {value!r}")


def whole(value: object, least: int) -> bool:
    """Whether a setting is a whole number of at least `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def number_in(value: object, low: float, high: float) -> bool:
    """Whether a setting is a number strictly between two others; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


def learned_column(training: Training, objectives: Sequence[Objective]) -> int:
    """Which objective the curve measures. Raises RecipeError unless exactly one objective is not known."""
    check_objectives(objectives)
    names = [objective.name for objective in objectives]
    missing = [column for column, name in enumerate(names) if name not in training.known]
    if len(missing) != 1 or len(training.known) != len(names) - 1:
        raise RecipeError(
            f"of the objectives {names}, all but the learned one must be known before training; known of training "
            f"{training.number}: {list(training.known)}"
        )
    return missing[0]


def rivals(training: Training, others: Sequence[Training], objectives: Sequence[Objective]) -> list[Training]:
    """The others by number, without the training itself. Raises RecipeError unless all have the same objectives."""
    column = learned_column(training, objectives)
    found = sorted((other for other in others if other.number != training.number), key=lambda other: other.number)
    for other in found:
        if other.known.keys() != training.known.keys() and learned_column(other, objectives) != column:
            raise RecipeError(
                f"the curves measure one objective: {objectives[column].name} for training {training.number}, another "
                f"for training {other.number}, of which {list(other.known)} are known"
            )
    return found


def values_of(trainings: Sequence[Training], learned: FloatVector, objectives: Sequence[Objective]) -> FloatMatrix:
    """(n, objectives) the known values, and (n,) `learned` ones in the column that is not known."""
    rows = [
        [training.known.get(objective.name, value) for objective in objectives]
        for training, value in zip(trainings, learned.tolist(), strict=True)
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(objectives))


def known_violations(values: FloatMatrix, column: int, objectives: Sequence[Objective]) -> FloatVector:
    """(n, objectives) -> (n,) by how much the known objectives break their limits.

    The limit of the learned one, in `column`, does not count: a value on the way is no reason to think that the last
    one breaks it.
    """
    kept = [replace(one, limit=None) if place == column else one for place, one in enumerate(objectives)]
    return violations(values, kept)
