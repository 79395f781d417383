from __future__ import annotations

import numpy as np
import pytest

from hwnas.blocks import ConvBlock
from hwnas.errors import SpaceError
from hwnas.latency import index as index_module
from hwnas.latency.index import BlockIndex
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.spaces.resnet import ResNetSpace

SPACES = {
    "mobilenetv3": MobileNetV3Space(resolutions=(16, 24), depths=(1, 2), width_mults=(0.5, 1.0), num_classes=3),
    "nasbench201": NasBench201Space(channels=4, cells=2, resolution=8),
    "resnet": ResNetSpace(resolutions=(16, 24), width_per_stage=True, width_mults=(0.5, 1.0), depths=(0, 1)),
}


@pytest.fixture(params=SPACES.values(), ids=SPACES)
def space(request):
    return request.param


def test_numbers_are_the_blocks_of_each_network(space):
    index = BlockIndex(space)
    archs = space.sample(20, np.random.default_rng(0))
    numbers = index.numbers(archs)
    assert numbers.shape == (20, len(space.positions))
    for arch, row, used in zip(archs, numbers, index.used(archs), strict=True):
        blocks = space.blocks(tuple(arch))
        assert [index.blocks[number] for number in row if number >= 0] == blocks
        assert {index.blocks[number] for number in used} == set(blocks)


def test_blocks_and_keys_are_distinct(space):
    index = BlockIndex(space)
    assert len(set(index.blocks)) == len(set(index.keys)) == len(index.blocks)
    assert [block.key for block in index.blocks] == list(index.keys)


def test_totals_are_sums_of_values(space):
    index = BlockIndex(space)
    archs = space.sample(10, np.random.default_rng(1))
    values = np.random.default_rng(2).random(len(index.keys))
    by_key = dict(zip(index.keys, values, strict=True))
    wanted = [sum(by_key[block.key] for block in space.blocks(tuple(arch))) for arch in archs]
    np.testing.assert_allclose(index.total(archs, index.costs(values)), wanted, rtol=1e-12)
    np.testing.assert_array_equal(index.total(archs, index.costs(by_key)), index.total(archs, index.costs(values)))
    assert index.total(archs[:0], index.costs(values)).shape == (0,)


def test_costs_are_zero_only_where_nothing_stands(space):
    index = BlockIndex(space)
    for place, costs in enumerate(index.costs(np.ones(len(index.keys)))):
        wanted = [float(block is not None) for _, block in space.position_blocks(place)]
        assert costs.tolist() == wanted


def test_a_missing_value_is_an_error(space):
    index = BlockIndex(space)
    with pytest.raises(KeyError):
        index.costs(dict.fromkeys(index.keys[1:], 1.0))


def test_places_are_all_positions_and_options_of_a_block(space):
    index = BlockIndex(space)
    found = {
        (place, tuple(options)): index.blocks[number]
        for number in range(len(index.blocks))
        for place, rows in index.places(number)
        for options in rows.tolist()
    }
    assert found == {
        (place, options): block
        for place in range(len(space.positions))
        for options, block in space.position_blocks(place)
        if block is not None
    }


def test_a_position_of_too_many_slots_is_named(monkeypatch):
    monkeypatch.setattr(index_module, "MAX_COMBINATIONS", 30)
    with pytest.raises(SpaceError, match=r"position 'stage0_0' of mobilenetv3 depends on 4 slots .* 36 .*limit 30"):
        BlockIndex(MobileNetV3Space(width_mults=(1.0,), resolutions=(16, 24, 32, 40), depths=(1,)))


def test_equal_blocks_in_different_places_are_one():
    space = NasBench201Space(channels=4, cells=3, resolution=8)
    assert len(BlockIndex(space).blocks) == len(BlockIndex(NasBench201Space(channels=4, cells=1, resolution=8)).blocks)
    assert isinstance(BlockIndex(space).blocks[0], ConvBlock)
