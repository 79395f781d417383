"""A network layer by layer: every block once, with its part of the latency."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwnas.card import PROFILED
from hwnas.latency.fusion import contextual
from hwnas.latency.index import BlockIndex
from hwnas.latency.layers import layers_of, other_ms
from hwnas.latency.predict import TablePredictor
from hwnas.space import SearchSpace
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.morph import MorphSpace
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.table import LatencyTable, Row
from hwprof.target import Target

SPACES: dict[str, SearchSpace] = {
    "mobilenetv3": MobileNetV3Space(
        resolutions=(16,), depths=(1, 2), num_classes=5, stage_widths=(16, 24), stage_strides=(2, 1),
        se=(True, False), activations=("relu", "hardswish"), head_widths=(32, 48),
    ),
    "nasbench201": NasBench201Space(channels=4, cells=1, resolution=8),
    "morph": MorphSpace(resolution=8, widths=[8, 16], kernels=[3], stages=1, max_depth=2),
}  # fmt: skip


def table_of(space: SearchSpace) -> LatencyTable:
    index = BlockIndex(space)
    rows = {block.key: Row(1e-3 + 1e-6 * block.macs, 0.0, 1) for block in index.blocks}
    fusions = dict.fromkeys(contextual(space, space.sample(20, np.random.default_rng(0))), -0.0001)
    return LatencyTable(Target(), {}, {}, 0.01, (), None, rows, fusions)


@pytest.mark.parametrize("name", SPACES)
def test_layers_and_the_rest_are_the_prediction(name: str) -> None:
    space = SPACES[name]
    table = table_of(space)
    predictor = TablePredictor(space, table)
    for row in space.sample(5, np.random.default_rng(1)):
        arch = space.check(row)
        layers = layers_of(space, table, arch)
        blocks = space.blocks(arch)
        assert [layer.key for layer in layers] == [block.key for block in blocks]
        assert sum(layer.macs for layer in layers) == sum(block.macs for block in blocks)
        assert sum(layer.share or 0.0 for layer in layers) == pytest.approx(1.0)
        total = sum(layer.ms or 0.0 for layer in layers) + sum(other_ms(space, table, arch).values())
        assert total == pytest.approx(predictor.predict_ms(np.array([arch]))[0])
        assert [layer.reads for layer in layers] == space.sources(arch)
        for layer in layers:
            given = [space.input_shape(arch) if source < 0 else layers[source].output for source in layer.reads]
            assert list(layer.inputs) == given, "what a block reads is what another one gives"
        assert layers[-1].output == (space.num_classes,)


def test_fusions_are_named_where_a_table_has_them() -> None:
    for name, space in SPACES.items():
        arch = space.check(space.sample(1, np.random.default_rng(2))[0])
        expected = {"every inference"} | ({"fused across blocks"} if name == "nasbench201" else set())
        assert set(other_ms(space, table_of(space), arch)) == expected


def test_what_was_profiled_in_the_network_goes_before_the_table() -> None:
    space = SPACES["mobilenetv3"]
    arch = space.check(space.sample(1, np.random.default_rng(3))[0])
    numbers = [space.positions.index(position) for position, _ in space.placed_blocks(arch)]
    times = {number: 0.1 * (place + 1) for place, number in enumerate(numbers[:-1])}  # nothing is left of the last
    layers = layers_of(space, table_of(space), arch, times)
    assert {layer.origin for layer in layers} == {PROFILED}
    assert [layer.ms for layer in layers] == [*times.values(), 0.0]
    assert sum(layer.share or 0.0 for layer in layers) == pytest.approx(1.0)
    assert layers_of(space, replace(table_of(space), rows={}), arch, times) == layers


def test_what_the_profiler_takes_is_taken_off_as_in_the_table() -> None:
    space = SPACES["mobilenetv3"]
    arch = space.check(space.sample(1, np.random.default_rng(5))[0])
    table = table_of(space)
    rows = {key: replace(row, profiled_ms=row.ms + 0.5) for key, row in table.rows.items()}
    numbers = [space.positions.index(position) for position, _ in space.placed_blocks(arch)]
    keys = [block.key for block in space.blocks(arch)]
    times = {number: rows[key].profiled_ms or 0.0 for number, key in zip(numbers, keys, strict=True)}
    as_then = layers_of(space, replace(table, rows=rows), arch, times)
    assert [layer.ms for layer in as_then] == pytest.approx([rows[key].ms for key in keys])
    partly = replace(table, rows={**rows, keys[1]: table.rows[keys[1]]})  # all blocks alike, or none
    assert [layer.ms for layer in layers_of(space, partly, arch, times)] == list(times.values())


def test_a_table_that_lacks_a_row_gives_no_times_and_an_estimate_is_said() -> None:
    space = SPACES["morph"]
    arch = space.check(space.sample(1, np.random.default_rng(4))[0])
    table = table_of(space)
    key = space.blocks(arch)[0].key
    unknown = replace(table, rows={name: row for name, row in table.rows.items() if name != key})
    assert {(layer.ms, layer.share, layer.origin) for layer in layers_of(space, unknown, arch)} == {(None, None, "")}
    assert other_ms(space, replace(table, rows={}), arch) == {}
    guessed = replace(table, rows={**table.rows, key: Row(0.5, 0.1, 0, "estimated")})
    first, *others = layers_of(space, guessed, arch)
    assert (first.ms, first.origin, {layer.origin for layer in others}) == (0.5, "estimated", {"measured"})
