"""The evolution that the inner search is compared with."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TABLES = BENCHMARKS.parent / "latency_tables"


@pytest.fixture(scope="module")
def baseline():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from baselines import once_for_all
    finally:
        sys.path.remove(str(BENCHMARKS))
    return once_for_all


@pytest.fixture(scope="module")
def predictor():
    from hwnas.latency.predict import TablePredictor
    from hwnas.spaces import make_space
    from hwprof.table import read_table

    (path,) = TABLES.glob("*/*-mobilenetv3-*.json")
    return TablePredictor(make_space("mobilenetv3", {}), read_table(path))


def test_plain_latency_is_the_predictors(baseline, predictor):
    archs = predictor.space.sample(50, np.random.default_rng(0))
    plain = [baseline.plain_latency(predictor)(arch) for arch in archs.tolist()]
    np.testing.assert_allclose(plain, predictor.predict_ms(archs), rtol=1e-12)


def test_kernel_and_expansion_of_a_layer_are_one_gene(baseline, predictor):
    genes = baseline.genes_of(predictor.space)
    assert sorted(slot for gene in genes for slot in gene) == list(range(len(predictor.space.slots)))
    assert [len(gene) for gene in genes].count(2) == 20


def test_the_evolution_keeps_the_limit_and_beats_random_draws(baseline, predictor):
    space = predictor.space
    limit = float(np.median(predictor.predict_ms(space.sample(200, np.random.default_rng(0)))))
    asked = []

    def accuracy(archs):
        asked.append(archs)
        return archs.sum(axis=1).astype(float)

    found = baseline.evolve(space, baseline.plain_latency(predictor), accuracy, limit, seed=0, generations=10)
    archs = np.concatenate(asked)
    assert found.evaluations == len(archs) == 1100
    assert found.distinct == len(np.unique(archs, axis=0))
    assert predictor.predict_ms(archs).max() <= limit + 1e-9
    assert found.accuracy == archs.sum(axis=1).max() == sum(found.arch)
    assert found.accuracy > archs[:100].sum(axis=1).max()
    again = baseline.evolve(space, baseline.plain_latency(predictor), accuracy, limit, seed=0, generations=10)
    assert again == found
