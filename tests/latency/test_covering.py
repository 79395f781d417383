from __future__ import annotations

import numpy as np
import pytest

from hwnas.blocks import ConvBlock
from hwnas.errors import PredictorError
from hwnas.latency.covering import anchor_archs, covering_archs, random_archs, spread_archs
from hwnas.latency.index import BlockIndex
from hwnas.space import Position, SearchSpace, Slot
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space


class Choice(SearchSpace):
    """One position of 500 blocks that a second slot may hide; a position without slots, and one that stays empty."""

    name = "choice"
    slots = (Slot("kernel", tuple(range(500))), Slot("hide", ("no", "yes")))
    positions = (Position("always", ()), Position("layer", (0,)), Position("never", (1,)))
    num_classes = 2
    config = property(lambda self: {})
    hides = 1  # the option of the second slot that hides

    def block_at(self, position, options):
        if position == 2:
            return None
        return ConvBlock(8, 3, 8 + sum(options), 3, 1, "relu")

    def canonical(self, archs):
        archs = archs.copy()
        archs[archs[:, 1] == self.hides, 0] = 0
        return archs

    def input_shape(self, arch):
        return 3, 8, 8

    def build(self, arch):
        raise NotImplementedError


class AlwaysHidden(Choice):
    def canonical(self, archs):
        return np.zeros_like(archs)


def covered(space, archs):
    numbers = BlockIndex(space).numbers(archs)
    return set(numbers[numbers >= 0])


SMALL = MobileNetV3Space(resolutions=(16, 24), depths=(1, 2), width_mults=(0.5, 1.0), num_classes=3)
CELLS = NasBench201Space(channels=4, cells=2, resolution=8)


@pytest.mark.parametrize("space", [SMALL, CELLS], ids=["mobilenetv3", "nasbench201"])
@pytest.mark.parametrize("seed", range(5))
def test_every_block_occurs_in_few_canonical_networks(space, seed):
    index = BlockIndex(space)
    archs = covering_archs(space, index, np.random.default_rng(seed))
    assert covered(space, archs) == set(range(len(index.blocks)))
    assert (space.canonical(archs) == archs).all()
    # no fewer can do: a position holds one block at a time
    most = max(
        sum(block is not None for block in dict(space.position_blocks(place)).values())
        for place in range(len(space.positions))
    )
    assert len(archs) <= most + 2


def test_the_default_space_needs_45_networks():
    space = MobileNetV3Space()
    index = BlockIndex(space)
    first, second = (covering_archs(space, index, np.random.default_rng(0)) for _ in range(2))
    assert len(first) == 45
    assert (first == second).all()
    assert covered(space, first) == set(range(len(index.blocks)))
    other = covering_archs(space, index, np.random.default_rng(1))
    assert len(other) == 45
    assert (other != first).any()


def test_more_options_than_are_tried_at_once():
    space = Choice()
    archs = covering_archs(space, BlockIndex(space), np.random.default_rng(0))
    assert covered(space, archs) == set(range(500))
    assert len(archs) == 500


def test_a_block_that_no_network_holds_is_named():
    space = AlwaysHidden()
    with pytest.raises(PredictorError, match=r"no network of choice was found that holds the block conv:.*channels=9"):
        covering_archs(space, BlockIndex(space), np.random.default_rng(0))


def test_anchors_are_from_small_to_large():
    index = BlockIndex(SMALL)
    anchors = anchor_archs(SMALL, index, np.random.default_rng(0))
    macs = [sum(block.macs for block in SMALL.blocks(tuple(arch))) for arch in anchors]
    sample = [sum(block.macs for block in SMALL.blocks(tuple(a))) for a in SMALL.sample(300, np.random.default_rng(1))]
    ranks = [np.mean(np.array(sample) < value) for value in macs]
    assert ranks == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.07)


def test_a_tiny_space_has_fewer_anchors_and_networks():
    space = MobileNetV3Space(resolutions=(16, 24), depths=(1,), kernels=(3,), expands=(3,), num_classes=3)
    rng = np.random.default_rng(0)
    anchors = anchor_archs(space, BlockIndex(space), rng)
    assert sorted(anchors[:, 0]) == [0, 1]
    assert random_archs(space, 5, rng, anchors).shape == (0, len(space.slots))
    assert len(random_archs(space, 5, rng, anchors[:1])) == 1


def test_random_networks_are_distinct_and_new():
    rng = np.random.default_rng(0)
    taken = SMALL.sample(5, rng)
    archs = random_archs(SMALL, 40, rng, taken)
    assert archs.shape == (40, len(SMALL.slots))
    assert len(np.unique(np.concatenate([archs, taken]), axis=0)) == 45
    assert (SMALL.canonical(archs) == archs).all()


def test_spread_networks_reach_both_ends_where_uniform_ones_do_not():
    space = MobileNetV3Space()
    index = BlockIndex(space)
    macs = index.costs(np.array([block.macs for block in index.blocks], dtype=float))
    spread, uniform = (
        np.log(index.total(archs, macs)).std()
        for archs in (
            spread_archs(space, 300, np.random.default_rng(0)),
            space.sample(300, np.random.default_rng(0)),
        )
    )
    assert spread > 1.5 * uniform
