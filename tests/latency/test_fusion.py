"""Counts of what runtimes fuse and share, against graphs that are worked out by hand and against ONNX Runtime's own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from hwnas.graphs import write_arch
from hwnas.latency.fusion import FusionCounts, contextual, fusions
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.target import Target

CELLS = NasBench201Space(channels=8, cells=1, resolution=8)
NONE, SKIP, CONV1, CONV3, POOL = range(5)


def counted(*edges: int) -> Counter[str]:
    """Of edges 01, 02, 12, 03, 13, 23, in the first stage only: what the cells of the others add is the same again."""
    total: Counter[str] = Counter()
    placed = CELLS.placed_blocks(edges)
    for (position, _), counts in zip(placed, fusions(CELLS, edges), strict=True):
        if position.name.startswith("stage1_cell0"):  # its input is a sum, with more than one reader
            total.update({name: value for name, value in counts.items() if "moved" not in name})
    return total


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        pytest.param((NONE, NONE, NONE, CONV3, NONE, NONE), {"relu fused": 1}, id="the reduction's sum is fused"),
        pytest.param((SKIP, NONE, NONE, CONV3, SKIP, NONE), {"add fused": 1}, id="a sum into a convolution"),
        pytest.param(
            (CONV3, CONV3, NONE, CONV3, SKIP, SKIP), {"relu shared": 2, "relu fused": 1, "add fused": 2}, id="3 ReLUs"
        ),
        pytest.param((SKIP, POOL, POOL, POOL, NONE, SKIP), {"avg_pool shared": 2}, id="one pooling of three"),
        pytest.param((CONV1, NONE, CONV1, NONE, NONE, SKIP), {"relu fused": 2}, id="a chain of convolutions"),
        pytest.param(
            (CONV1, NONE, CONV1, NONE, CONV1, SKIP), {"relu shared": 1, "add fused": 1, "relu fused": 2}, id="ReLU"
        ),
    ],
)
def test_cells_worked_out_by_hand(edges, expected):
    assert tuple(CELLS.check(edges)) == edges
    assert counted(*edges) == Counter(expected)


def test_elements_moved_go_with_the_counts():
    edges = (SKIP, POOL, POOL, POOL, NONE, SKIP)
    counts = dict(zip([p.name for p, _ in CELLS.placed_blocks(edges)], fusions(CELLS, edges), strict=True))
    assert counts["stage0_cell0.edge12"]["avg_pool shared moved"] == pytest.approx(2 * 8 * 8 * 8 * 1e-6)
    assert counts["stage1_cell0.edge12"]["avg_pool shared moved"] == pytest.approx(2 * 16 * 4 * 4 * 1e-6)


def test_onnx_runtime_keeps_as_many_operators_as_are_not_shared(tmp_path):
    """The runtime's optimised graphs of random cells: every ReLU and pooling that is shared here is gone there."""
    names = ("relu fused", "relu shared", "avg_pool shared", "add shared")
    for arch in CELLS.sample(12, np.random.default_rng(1)):
        arch = tuple(int(option) for option in arch)
        write_arch(CELLS, arch, Target(), tmp_path / "in")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "out.onnx")
        onnxruntime.InferenceSession(tmp_path / "in.onnx", options)
        before, after = (
            Counter(node.op_type for node in onnx.load(tmp_path / name).graph.node) for name in ("in.onnx", "out.onnx")
        )
        _, relu, pool, add = FusionCounts(CELLS, names)(np.array([arch]))[0]
        assert (before - after)["Relu"] == relu, arch
        assert (before - after)["AveragePool"] == pool, arch
        assert (before - after)["Add"] == add, arch


def test_chains_have_nothing_that_depends_on_neighbours():
    space = MobileNetV3Space()
    assert contextual(space, space.sample(40, np.random.default_rng(0))) == ()
    none = FusionCounts(space, ())(space.sample(3, np.random.default_rng(0)))
    assert none.shape == (3, 0)


def test_cells_have():
    found = contextual(CELLS, CELLS.sample(64, np.random.default_rng(0)))
    assert {"relu fused", "relu shared", "avg_pool shared", "add fused"} <= set(found)


def test_counts_are_remembered_and_in_the_order_of_the_rows():
    names = ("relu shared", "add fused moved")
    counts = FusionCounts(CELLS, names)
    archs = CELLS.sample(20, np.random.default_rng(0))
    doubled = np.concatenate([archs, archs[::-1]])
    found = counts(doubled)
    np.testing.assert_array_equal(found[:20], found[20:][::-1])
    np.testing.assert_array_equal(found[:20], [FusionCounts(CELLS, names)(arch[None])[0] for arch in archs])
    assert counts(archs[:0]).shape == (0, 2)


def test_an_unknown_count_is_zero():
    assert not FusionCounts(CELLS, ("gelu fused",))(CELLS.sample(5, np.random.default_rng(0))).any()
