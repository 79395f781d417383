from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwnas.latency.blame import (
    Suspects,
    block_errors,
    option_columns,
    profiler_shift,
    suspects,
    systematic_errors,
)
from hwnas.latency.index import BlockIndex
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwprof.table import LatencyTable, Row
from hwprof.target import Target

RNG = np.random.default_rng
SPACE = MobileNetV3Space(
    resolutions=(16, 24),
    depths=(1, 2),
    width_mults=(0.5, 1.0),
    num_classes=3,
    stage_widths=(8, 16),
    stage_strides=(2, 2),
    se=(False, True),
    activations=("relu", "relu"),
)
INDEX = BlockIndex(SPACE)
TABLE = LatencyTable(
    target=Target(),
    fingerprint={},
    provenance={},
    intercept_ms=0.0,
    models=(),
    validation=None,
    rows={key: Row(0.5, 0.0, 3, profiled_ms=1.0) for key in INDEX.keys},
)
ARCHS = SPACE.sample(80, RNG(0))
ARCH = tuple(int(option) for option in ARCHS[0])


def times(arch, *, factor: float = 1.0, slow: int | None = None) -> dict[int, float]:
    """Profiled ms of each position: `factor`, and three times that at position `slow`."""
    numbers = INDEX.numbers(np.array([arch]))[0]
    return {place: factor * (3.0 if place == slow else 1.0) for place, number in enumerate(numbers) if number >= 0}


def test_the_slow_block_of_one_network_explains_its_error() -> None:
    slow = next(iter(times(ARCH))) + 1
    # The table counts 0.5 ms for a block that takes three times its profile: 1 ms is missing from the prediction.
    blocks, explained = block_errors(INDEX, TABLE, ARCH, times(ARCH, slow=slow), 1.0, -1.0)
    assert blocks[0].position == SPACE.positions[slow].name
    assert blocks[0].key == SPACE.blocks(ARCH)[list(times(ARCH)).index(slow)].key
    assert (blocks[0].excess_ms, blocks[0].share) == (pytest.approx(-1.0), pytest.approx(1.0))
    assert explained == pytest.approx(1.0)
    assert all(block.excess_ms == pytest.approx(0) for block in blocks[1:])


def test_a_block_of_almost_no_time_is_not_blown_up() -> None:
    """A block that the runtime fused away has the smallest time there is: twice that is still nothing."""
    place, key = next(iter(times(ARCH))) + 1, SPACE.blocks(ARCH)[1].key
    fused = replace(TABLE, rows={**TABLE.rows, key: Row(1e-6, 0.0, 3, profiled_ms=1e-6)})
    _, explained = block_errors(INDEX, fused, ARCH, {**times(ARCH), place: 1e-3}, 1.0, 1.0)
    assert abs(explained) < 0.01


def test_a_slower_profiler_is_no_slower_block() -> None:
    shift = profiler_shift(INDEX, TABLE, {ARCH: times(ARCH, factor=1.2)})
    assert shift == pytest.approx(1.2)
    assert block_errors(INDEX, TABLE, ARCH, times(ARCH, factor=1.2), shift, -1.0)[1] == pytest.approx(0)
    assert block_errors(INDEX, TABLE, ARCH, times(ARCH, factor=1.2), 1.0, -1.0)[1] > 0.5


def test_estimated_rows_say_nothing_about_the_profiler() -> None:
    estimated = replace(TABLE, rows={key: replace(row, origin="estimated", count=0) for key, row in TABLE.rows.items()})
    assert profiler_shift(INDEX, estimated, {ARCH: times(ARCH, factor=1.2)}) == 1.0
    assert profiler_shift(INDEX, TABLE, {}) == 1.0
    blocks, _ = block_errors(INDEX, estimated, ARCH, times(ARCH), 1.0, 1.0)
    assert {block.origin for block in blocks} == {"estimated"}


def test_rows_without_a_profile_are_compared_by_their_time() -> None:
    imported = replace(TABLE, rows={key: replace(row, profiled_ms=None) for key, row in TABLE.rows.items()})
    _, explained = block_errors(INDEX, imported, ARCH, times(ARCH, factor=0.5), 1.0, 1.0)
    assert explained == pytest.approx(0)


def test_options_of_absent_layers_are_nobodys() -> None:
    columns, names = option_columns(SPACE, ARCHS)
    assert columns.shape == (len(ARCHS), len(names))
    chosen = dict(zip(names, columns.T, strict=True))
    resolutions = [chosen[f"resolution = {size}"] for size in (16, 24)]
    np.testing.assert_array_equal(sum(resolutions), np.ones(len(ARCHS)))
    # The second block of a stage of depth 1 is not there, and its kernel is no option of the network.
    shallow = ARCHS[:, [slot.name for slot in SPACE.slots].index("stage0.depth")] == 0
    kernels = sum(chosen[f"stage0.1.kernel = {kernel}"] for kernel in (3, 5, 7))
    np.testing.assert_array_equal(kernels, (~shallow).astype(float))
    assert 0 < shallow.sum() < len(ARCHS)


def errors_of(found: Suspects, name: str, size: float, noise: float = 0.01, seed: int = 1) -> np.ndarray:
    return size * found.columns[:, found.names.index(name)] + RNG(seed).normal(0, noise, len(found.columns))


PREDICTED = np.full(len(ARCHS), 2.0)
FOUND = suspects(INDEX, TABLE, ARCHS, PREDICTED)


def common_block() -> str:
    present = (FOUND.columns[:, : len(INDEX.keys)] > 0).sum(axis=0)
    return INDEX.keys[int(np.argmin(np.abs(present - 20)))]


def test_a_wrong_row_is_named_with_its_size() -> None:
    name = common_block()
    (first, *rest) = systematic_errors(errors_of(FOUND, name, 0.4), FOUND, RNG(2))
    assert (first.name == name) or first.alike > 0
    assert first.error == pytest.approx(0.4, abs=3 * first.standard_error)
    assert first.p_value <= 0.05
    assert first.networks == (FOUND.columns[:, FOUND.names.index(first.name)] > 0).sum()
    assert len(rest) <= 1


def test_an_option_is_named_with_its_size() -> None:
    (first, *_) = systematic_errors(errors_of(FOUND, "resolution = 24", 0.05), FOUND, RNG(2))
    assert (first.kind, first.name.startswith("resolution")) == ("option", True)
    assert abs(first.error) == pytest.approx(0.05, abs=0.01)


def test_noise_alone_names_nothing_most_of_the_time() -> None:
    """Errors of nothing but noise: something is called significant in about one of twenty validations, not in most."""
    wrong = sum(bool(systematic_errors(RNG(seed).normal(0, 0.03, len(ARCHS)), FOUND, RNG(0))) for seed in range(40))
    assert wrong <= 6


def test_one_outlier_does_not_make_a_block_guilty() -> None:
    errors = RNG(3).normal(0, 0.01, len(ARCHS))
    errors[0] = 0.5
    assert systematic_errors(errors, FOUND, RNG(0)) == ()


def test_a_block_that_all_share_is_a_matter_of_its_share() -> None:
    shares = RNG(0).uniform(0.1, 0.9, (50, 1))
    found = Suspects(("block",), ("stem",), ("measured",), shares)
    (first,) = systematic_errors(0.2 * shares[:, 0] + RNG(1).normal(0, 0.01, 50), found, RNG(2))
    assert (first.name, first.networks) == ("stem", 50)
    assert first.error == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("networks", [0, 1, 3, 5])
def test_few_networks_show_nothing(networks: int) -> None:
    few = suspects(INDEX, TABLE, ARCHS[:networks], PREDICTED[:networks])
    assert systematic_errors(np.linspace(-1, 1, networks), few, RNG(0)) == ()


def test_twins_are_told() -> None:
    column = (RNG(0).random((60, 1)) < 0.4).astype(float)
    found = Suspects(("block",) * 2, ("one", "two"), ("measured",) * 2, np.repeat(column, 2, axis=1))
    (first,) = systematic_errors(0.1 * column[:, 0] + RNG(1).normal(0, 0.01, 60), found, RNG(2))
    assert first.alike == 1


def test_the_same_seed_names_the_same() -> None:
    errors = errors_of(FOUND, common_block(), 0.1, noise=0.03)
    assert systematic_errors(errors, FOUND, RNG(5)) == systematic_errors(errors, FOUND, RNG(5))
