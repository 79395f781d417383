from __future__ import annotations

import numpy as np
import pytest

from hwnas.latency.index import BlockIndex
from hwnas.latency.rehearsal import searched_archs
from hwnas.space import format_arch
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space

SPACE = MobileNetV3Space(resolutions=(16, 24), depths=(1, 2, 3), width_mults=(0.5, 1.0), num_classes=3)
CELLS = NasBench201Space(channels=4, cells=1, resolution=8)


class Device:
    """Blocks of a space with times that go with their MACs, and what a table believes of them."""

    def __init__(self, space, error: float, index: BlockIndex | None = None) -> None:
        self.space, self.index = space, index or BlockIndex(space)
        rng = np.random.default_rng(0)
        self.true = np.array([block.macs + 1000.0 for block in self.index.blocks]) ** 0.7
        self.believed = self.true * np.exp(error * rng.standard_normal(len(self.true)))

    def ms(self, archs):
        return self.index.total(archs, self.index.costs(self.true))

    def predict_ms(self, archs):
        return self.index.total(archs, self.index.costs(self.believed))

    def searched(self, n=40, seed=0, exclude=None):
        none = np.empty((0, len(self.space.slots)), dtype=np.int64)
        rng = np.random.default_rng(seed)
        return searched_archs(self.space, self.index, self.predict_ms, n, rng, none if exclude is None else exclude)


@pytest.fixture(scope="module")
def index() -> BlockIndex:
    return BlockIndex(SPACE)


def test_searched_networks_are_slower_than_predicted_where_random_ones_are_not(index):
    device = Device(SPACE, 0.2, index)
    chosen, random = (
        np.log(device.ms(archs) / device.predict_ms(archs)).mean()
        for archs in (device.searched(), SPACE.sample(400, np.random.default_rng(1)))
    )
    assert chosen > random + 0.02


def test_a_table_without_errors_deceives_no_search(index):
    device = Device(SPACE, 0.0, index)
    chosen = device.searched()
    np.testing.assert_array_equal(device.ms(chosen), device.predict_ms(chosen))


def test_the_preferences_of_searches_differ_by_position():
    """Cells have few kinds of blocks, and many networks all the same."""
    assert len(Device(CELLS, 0.1).searched(20)) > 12


def test_they_are_spread_from_the_fastest_to_the_slowest(index):
    device = Device(SPACE, 0.1, index)
    ms, random = device.predict_ms(device.searched()), device.predict_ms(SPACE.sample(400, np.random.default_rng(1)))
    assert ms[0] == ms.min() < random.min()
    assert ms.max() > np.quantile(random, 0.9)
    assert np.histogram(np.log(ms), bins=3)[0].min() >= 3


def test_they_are_canonical_distinct_and_follow_from_the_seed(index):
    device = Device(SPACE, 0.1, index)
    chosen = device.searched()
    assert len(chosen) == 40
    assert len({format_arch(arch) for arch in chosen}) == 40
    np.testing.assert_array_equal(SPACE.canonical(chosen), chosen)
    np.testing.assert_array_equal(device.searched(), chosen)
    assert not np.array_equal(device.searched(seed=1), chosen)
    others = device.searched(exclude=chosen)
    assert not {*map(tuple, others)} & {*map(tuple, chosen)}


def test_a_small_space_gives_what_it_has():
    assert 12 < len(Device(CELLS, 0.1).searched(1000)) < 1000
