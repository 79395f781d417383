from __future__ import annotations

import numpy as np
import pytest

from hwnas.blocks import ConvBlock, HeadBlock, MBConvBlock
from hwnas.errors import PredictorError
from hwnas.latency.estimate import block_features, estimate_rows
from hwnas.latency.index import BlockIndex
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.table import Row


@pytest.fixture(scope="module")
def index():
    return BlockIndex(MobileNetV3Space(resolutions=(32, 48, 64), num_classes=10))


@pytest.fixture(scope="module")
def truth(index):
    """Milliseconds of every block: a positive cost for each of its features."""
    features = block_features(index.blocks)
    costs = np.random.default_rng(0).uniform(0.5, 1.5, features.shape[1]) / features.mean(axis=0)
    return dict(zip(index.keys, features @ costs, strict=True))


def some(index, truth, share, noise=0.0):
    """Measured rows of a part of the blocks; all stems, heads and final layers are measured."""
    rng = np.random.default_rng(1)
    return {
        key: Row(truth[key] * float(np.exp(rng.normal(0, noise))), 0.01, 3)
        for key in index.keys
        if not key.startswith("mbconv") or rng.random() < share
    }


@pytest.mark.parametrize(("share", "noise", "limit"), [(0.5, 0, 0.02), (0.2, 0, 0.03), (0.5, 0.02, 0.05)])
def test_linear_costs_are_recovered(index, truth, share, noise, limit):
    rows = some(index, truth, share, noise)
    estimated = estimate_rows(index, rows)
    assert set(estimated) == set(index.keys) - set(rows)
    assert {(row.origin, row.count) for row in estimated.values()} == {("estimated", 0)}
    errors = [abs(row.ms / truth[key] - 1) for key, row in estimated.items()]
    assert np.mean(errors) < limit
    assert np.max(errors) < 6 * limit


def test_blocks_that_are_as_good_as_free_do_not_bend_the_others(index, truth):
    rows = some(index, truth, 0.5)
    free = [key for key in rows if key.startswith("mbconv")][:3]
    estimated = estimate_rows(index, rows | {key: Row(1e-6, 0.0, 3) for key in free})
    errors = [abs(row.ms / truth[key] - 1) for key, row in estimated.items()]
    assert np.median(errors) < 0.05


def test_nothing_is_estimated_where_everything_is_measured(index, truth):
    assert estimate_rows(index, {key: Row(ms, 0, 1) for key, ms in truth.items()}) == {}


def test_operators_that_were_never_measured_are_an_error(index, truth):
    rows = {key: Row(ms, 0, 1) for key, ms in truth.items() if "kernel=7" not in key}
    with pytest.raises(PredictorError, match=r"no profiled network holds an operator of mbconv:.*kernel=7"):
        estimate_rows(index, rows)
    with pytest.raises(PredictorError, match="no profiled network holds an operator of conv:"):
        estimate_rows(index, {})


def test_blocks_without_layers_have_features():
    index = BlockIndex(NasBench201Space(channels=4, cells=1, resolution=8))
    features = block_features(index.blocks)
    assert (features.sum(axis=1) > 0).all()
    rows = {key: Row(float(ms), 0, 1) for key, ms in zip(index.keys, features.sum(axis=1), strict=True)}
    del rows["sum:size=4,in_channels=8,inputs=2"]
    (row,) = estimate_rows(index, rows).values()
    assert row.ms == pytest.approx(features.sum(axis=1)[index.keys.index("sum:size=4,in_channels=8,inputs=2")], rel=0.2)


def test_features_count_operators_and_what_they_move():
    small, large = ConvBlock(8, 4, 6, 3, 1, "relu"), ConvBlock(16, 4, 6, 3, 1, "relu")
    features = block_features((small, large))
    ratios = features[1] / features[0]
    assert sorted(set(np.round(ratios, 6))).count(1.0) == 1  # numbers of operators stay
    assert ratios.max() == 4  # multiply-accumulates
    kinds = block_features((small, HeadBlock(8, 4, 6, 3, "relu"), MBConvBlock(8, 4, 6, 3, 1, 8, "relu", False)))
    assert np.linalg.matrix_rank(kinds) == 3
