from __future__ import annotations

import numpy as np
import pytest

from hwnas.errors import PredictorError
from hwnas.search.accuracy_features import Presence, encoder_of
from hwnas.spaces import make_space


@pytest.fixture(scope="module")
def mobile():
    return make_space("mobilenetv3", {"resolutions": (128, 160, 224), "stage_widths": (24, 40, 80, 112, 160)})


@pytest.fixture(scope="module")
def encoder(mobile):
    archs = mobile.sample(300, np.random.default_rng(1))
    return encoder_of(Presence(mobile), archs, None)


def test_layers_that_the_depth_switches_off_are_not_there(mobile):
    archs = mobile.sample(500, np.random.default_rng(3))
    expected = np.ones(archs.shape, dtype=bool)
    stages = expected[:, 2:].reshape(len(archs), 5, 9)
    depths = archs[:, 2::9]
    stages[:, :, 5:7] = (depths >= 1)[:, :, None]
    stages[:, :, 7:9] = (depths >= 2)[:, :, None]
    np.testing.assert_array_equal(Presence(mobile)(archs), expected)


def test_slots_that_switch_and_are_switched_off(toy):
    """In the morph space a width decides about the next layer's skip, and is itself switched off by the depth."""
    space = make_space("morph", {"stages": 2, "max_depth": 2, "widths": (8, 16, 24)})
    archs = space.sample(300, np.random.default_rng(3))
    there = Presence(space)(archs)
    for number in range(len(space.slots)):
        raised = archs.copy()
        raised[:, number] = np.maximum(raised[:, number], 1)
        np.testing.assert_array_equal(there[:, number], space.canonical(raised)[:, number] > 0)
    skip = space.layer_slot(0, 1) + 3
    assert 0 < there[:, skip].mean() < 1
    flat = toy.ToySpace(stages=1, layers=1)
    assert Presence(flat)(flat.sample(50, np.random.default_rng(0))).all()


def test_option_0_is_not_what_is_not_there(mobile, encoder):
    shallow, deep = np.zeros((2, 1, len(mobile.slots)), dtype=np.int64)
    deep[0, 2] = 2  # stage 0: two layers more, of kernel and expansion 0
    difference = (encoder.raw(deep) - encoder.raw(shallow))[0]
    assert (difference > 0.5).sum() == 5  # the depth, two kernels, two expansions
    assert (difference < -0.5).sum() == 1  # the other depth


def test_levels_are_logarithms_and_counts_are_of_slots_of_a_kind(mobile, encoder):
    archs = np.zeros((3, len(mobile.slots)), dtype=np.int64)
    archs[:, 0] = 0, 1, 2
    levels = encoder.raw(archs) @ encoder.blocks["levels"]
    moved = np.flatnonzero(np.ptp(levels, axis=0) > 1e-6)
    assert len(moved) == 1
    steps = np.diff(levels[:, moved[0]])
    assert steps[1] / steps[0] == pytest.approx(np.log(224 / 160) / np.log(160 / 128), rel=1e-4)
    # kernels and expansions of the network and of each of five stages, depths of the network: three options each
    assert encoder.blocks["counts"].shape[1] == 3 * (6 + 6 + 1)
    swapped = np.zeros((2, len(mobile.slots)), dtype=np.int64)
    swapped[0, 3] = swapped[1, 5] = 2  # the kernel of another layer of the same stage
    counts, options = (encoder.raw(swapped) @ encoder.blocks[name] for name in ("counts", "options"))
    np.testing.assert_allclose(counts[0], counts[1], atol=1e-6)
    assert np.abs(options[0] - options[1]).max() > 0.01


def test_blocks_are_scaled_alike_over_the_rows_of_the_fit(mobile, encoder):
    raw = encoder.raw(mobile.sample(300, np.random.default_rng(1)))
    assert set(encoder.blocks) == {"options", "levels", "counts"}
    for matrix in encoder.blocks.values():
        assert ((raw @ matrix) ** 2).sum(axis=1).mean() == pytest.approx(1.0, rel=1e-3)


def test_a_space_that_knows_of_equal_networks_and_extra_features():
    space = make_space("nasbench201", {})
    archs = space.sample(200, np.random.default_rng(0))
    encoder = encoder_of(Presence(space), archs, lambda rows: 1e7 + rows[:, :2] * 1.0)
    assert {"same", "extra", "options", "counts"} <= set(encoder.blocks)
    # numbers far from zero keep their differences in single precision
    extra = encoder.raw(archs)[:, -2:]
    np.testing.assert_allclose(extra, archs[:, :2] - archs[:, :2].mean(axis=0), atol=1e-6)


def test_extra_features_in_any_unit_and_those_that_never_vary():
    space = make_space("nasbench201", {})
    archs = space.sample(200, np.random.default_rng(0))
    first, constant = archs[:, :1] * 1.0, np.full((200, 1), 1 / 3)
    sizes = []
    for extra in (first, first * 1e-15, first * 1e15, constant, constant * 1e15):
        encoder = encoder_of(Presence(space), archs, lambda rows, extra=extra: extra[: len(rows)])
        sizes.append((encoder.raw(archs) @ encoder.blocks["extra"]).std() if "extra" in encoder.blocks else 0.0)
    np.testing.assert_allclose(sizes, [1.0, 1.0, 1.0, 0.0, 0.0], atol=1e-3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda archs: archs[:, 0] * 1.0, r"are \(n, features\), got \(30,\)"),
        (lambda archs: np.zeros((3, 1)), r"are \(n, features\), got \(3, 1\)"),
        (lambda archs: np.full((len(archs), 1), np.nan), "not finite"),
        (lambda archs: np.full((len(archs), 1), 1e200), "give logarithms"),
    ],
)
def test_extra_features_that_cannot_be_used(toy, extra, message):
    space = toy.ToySpace()
    with pytest.raises(PredictorError, match=message):
        encoder_of(Presence(space), space.sample(30, np.random.default_rng(0)), extra)
