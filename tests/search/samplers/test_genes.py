"""Rows of parameters: there and back, what is random and what is near, for every kind of distribution."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hwnas.search.samplers.genes import ArchGenes, ParameterGenes
from hwnas.spaces.nasbench201 import NasBench201Space

DISTRIBUTIONS: list[BaseDistribution] = [
    FloatDistribution(-1.0, 1.0),
    FloatDistribution(2.0, 2.0),
    FloatDistribution(1e-5, 1.0, log=True),
    FloatDistribution(-1.0, 1.0, step=0.5),
    IntDistribution(-3, 9),
    IntDistribution(0, 1000, step=10),
    IntDistribution(1, 100, log=True),
    CategoricalDistribution(("a", None, 3)),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_random_and_near_values_are_of_the_distribution(distribution: BaseDistribution) -> None:
    genes, rng = ParameterGenes({"x": distribution}), np.random.default_rng(0)
    rows = genes.sample(200, rng)
    for row in [*rows, *genes.neighbours(rows[0], rng)]:
        value = genes.params(row)["x"]
        assert distribution._contains(distribution.to_internal_repr(value))
        again = genes.row({"x": value})
        assert again is not None
        np.testing.assert_allclose(again, row)
    if not distribution.single():
        assert len(np.unique(rows)) > 2
        assert len(genes.neighbours(rows[0], rng)) > 0
        assert (genes.neighbours(rows[0], rng) != rows[0]).any(axis=1).all()


def test_every_value_is_drawn_equally_often() -> None:
    genes = ParameterGenes({"n": IntDistribution(0, 4), "c": CategoricalDistribution("abcde")})
    rows = genes.sample(5000, np.random.default_rng(1))
    for column in rows.T:
        np.testing.assert_allclose(np.bincount(column.astype(int)) / 5000, 0.2, atol=0.03)


@pytest.mark.parametrize("params", [{}, {"x": 5.0}, {"x": "a"}, {"y": 0.0}])
def test_parameters_of_another_search_space(params: dict[str, object]) -> None:
    assert ParameterGenes({"x": FloatDistribution(0, 1)}).row(params) is None


def test_architectures_are_canonical_rows(toy: ModuleType) -> None:
    space = toy.ToySpace()
    genes = ArchGenes(space)
    for row in genes.sample(20, np.random.default_rng(2)):
        found = genes.row(genes.params(row))
        assert found is not None
        assert found.tolist() == row.tolist()
    assert genes.row({"stage0.depth": 99}) is None
    slots, same = genes.features(genes.sample(7, np.random.default_rng(3)))
    assert (slots.shape, same.shape) == ((7, int(space.cardinalities.sum())), (7, 0))
    assert (slots.sum(axis=1) == len(space.slots)).all()


def test_cells_that_are_the_same_network_have_the_same_features() -> None:
    space = NasBench201Space(channels=4, cells=1, resolution=8)
    # one 3x3 convolution, alone or behind and before skip connections
    same = np.array(
        [(0, 0, 0, 3, 0, 0), (3, 0, 0, 0, 1, 0), (1, 0, 0, 0, 3, 0), (1, 0, 3, 0, 0, 1), (1, 0, 1, 0, 0, 3)]
    )
    features = space.features(space.canonical(np.array(same)))
    assert (features == features[0]).all()
    assert features.sum() == 5
    twice, other = space.features(np.array([(0, 0, 0, 3, 0, 0), (3, 0, 0, 3, 1, 0), (0, 0, 0, 2, 0, 0)]))[1:]
    assert twice.tolist() == (2 * features[0]).tolist()
    assert other.tolist() != features[0].tolist()
    everything = space.canonical(space.sample(500, np.random.default_rng(0)))
    paths = sum((everything[:, list(path)] != 0).all(axis=1).astype(int) for path in ((3,), (0, 4), (1, 5), (0, 2, 5)))
    assert (space.features(everything).sum(axis=1) == paths).all()
