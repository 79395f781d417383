"""Rows of numbers that samplers work on: option indices of architectures, or the parameters of any Optuna study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hwnas.errors import SpaceError
from hwnas.search.problem import FloatMatrix
from hwnas.space import IntMatrix, SearchSpace

Rows = NDArray[Any]  # (n, genes)

_STEPS = 4  # neighbours tried along a parameter of which there are many or infinitely many values
_MANY = 16
_SPREAD = 0.2  # of such a step, as a share of the parameter's range


class Genes(Protocol):
    """Translates between parameters of trials and rows of numbers, and knows what is random and what is near."""

    def row(self, params: Mapping[str, Any]) -> Rows | None:
        """(genes,) of a trial's parameters; None if they are of another search space."""

    def params(self, row: Rows) -> dict[str, Any]:
        """The parameters of a row."""

    def sample(self, n: int, rng: np.random.Generator) -> Rows:
        """(n, genes) random rows."""

    def neighbours(self, row: Rows, rng: np.random.Generator) -> Rows:
        """(k, genes) other rows one step away."""

    def features(self, rows: Rows) -> tuple[FloatMatrix, FloatMatrix]:
        """(n, genes) -> what tells rows apart, one-hot for choices, and what says that they do the same, if known."""


class ArchGenes:
    """The architectures of a search space: canonical option indices."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def row(self, params: Mapping[str, Any]) -> IntMatrix | None:
        try:
            return np.array(self.space.arch_of(params), dtype=np.int64)
        except SpaceError:
            return None

    def params(self, row: IntMatrix) -> dict[str, Any]:
        return dict(self.space.describe(tuple(row.tolist())))

    def sample(self, n: int, rng: np.random.Generator) -> IntMatrix:
        return self.space.sample(n, rng)

    def neighbours(self, row: IntMatrix, rng: np.random.Generator) -> IntMatrix:
        return self.space.neighbours(tuple(row.tolist()))

    def features(self, rows: IntMatrix) -> tuple[FloatMatrix, FloatMatrix]:
        options = np.arange(int(self.space.cardinalities.max()))
        one_hot = (rows[:, :, None] == options).astype(np.float64)
        return one_hot[:, options < self.space.cardinalities[:, None]], np.log1p(self.space.features(rows))


class ParameterGenes:
    """The parameters of any study, as Optuna stores them: numbers, and the index of a categorical choice."""

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self._distributions = dict(distributions)

    def row(self, params: Mapping[str, Any]) -> Rows | None:
        found = []
        for name, distribution in self._distributions.items():
            if name not in params:
                return None
            try:
                value = distribution.to_internal_repr(params[name])
            except (ValueError, TypeError):
                return None
            if not distribution._contains(value):
                return None
            found.append(value)
        return np.array(found, dtype=np.float64)

    def params(self, row: Rows) -> dict[str, Any]:
        pairs = zip(self._distributions.items(), row.tolist(), strict=True)
        return {name: distribution.to_external_repr(value) for (name, distribution), value in pairs}

    def sample(self, n: int, rng: np.random.Generator) -> Rows:
        columns = [draw(distribution, rng.random(n)) for distribution in self._distributions.values()]
        return np.stack(columns, axis=1) if columns else np.empty((n, 0))

    def neighbours(self, row: Rows, rng: np.random.Generator) -> Rows:
        found = [row[None][:0]]
        for column, distribution in enumerate(self._distributions.values()):
            values = _near(distribution, float(row[column]), rng)
            steps = np.repeat(row[None], len(values), axis=0)
            steps[:, column] = values
            found.append(steps)
        steps = np.unique(np.concatenate(found), axis=0)
        others: Rows = steps[(steps != row).any(axis=1)]
        return others

    def features(self, rows: Rows) -> tuple[FloatMatrix, FloatMatrix]:
        columns = [np.empty((len(rows), 0))]
        for column, distribution in zip(rows.T, self._distributions.values(), strict=True):
            if isinstance(distribution, CategoricalDistribution):
                columns.append((column[:, None] == np.arange(len(distribution.choices))).astype(np.float64))
            else:
                shares = [2 * _share(distribution, value) for value in column.tolist()]
                columns.append(np.array(shares).reshape(len(rows), 1))
        return np.concatenate(columns, axis=1), np.empty((len(rows), 0))


def draw(distribution: BaseDistribution, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of a distribution, as Optuna stores them, at (n,) shares in [0, 1] of its range, on its scale."""
    count = _count(distribution)
    if isinstance(distribution, CategoricalDistribution):
        return np.minimum((shares * len(distribution.choices)).astype(np.int64), len(distribution.choices) - 1) * 1.0
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = float(distribution.low), float(distribution.high), distribution.step
    half = 0.5 if isinstance(distribution, IntDistribution) else 0.0
    if distribution.log:
        values = np.exp(np.log(low - half) + shares * (np.log(high + half) - np.log(low - half)))
        values = np.round(values) if half else values
    elif count is not None and step is not None:
        values = low + np.minimum((shares * count).astype(np.int64), count - 1) * step
    else:
        values = low + shares * (high - low)
    clipped: NDArray[np.float64] = np.clip(values, low, high)
    return clipped


def _share(distribution: BaseDistribution, value: float) -> float:
    """Where in the range of a distribution of numbers a value lies: the inverse of `draw`."""
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = float(distribution.low), float(distribution.high)
    if high == low:
        return 0.5
    if distribution.log:
        return float((np.log(value) - np.log(low)) / (np.log(high) - np.log(low)))
    return (value - low) / (high - low)


def _count(distribution: BaseDistribution) -> int | None:
    """How many values a distribution has; None: infinitely many."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if distribution.step is None:
        return 1 if distribution.low == distribution.high else None
    return round((distribution.high - distribution.low) / distribution.step) + 1


def _near(distribution: BaseDistribution, value: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Other values of a parameter: all where there are few or where they have no order, else some random steps."""
    count = _count(distribution)
    if count is not None and (count <= _MANY or isinstance(distribution, CategoricalDistribution)):
        return draw(distribution, (np.arange(count) + 0.5) / count)
    shares = _share(distribution, value) + _SPREAD * rng.standard_normal(_STEPS)
    return draw(distribution, np.abs(1 - np.abs(1 - shares % 2)))  # reflected at both ends
