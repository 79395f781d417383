"""The benchmark of inheritance: its parents have every kind of step, and its table says what it should."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from hwnas.space import rows_of
from hwnas.train.data import load_data
from hwnas.train.inherit import inherit

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("morphisms")


def test_parents_have_every_kind_of_step(benchmark):
    data, size = benchmark.images(argparse.Namespace(images=None))
    kinds = {}
    for space, arch in benchmark.spaces(data, size):
        torch.manual_seed(0)
        parent = space.build(arch)
        children = [inherit(space, arch, parent, other, seed=0) for other in rows_of(space.neighbours(arch))]
        kinds[space.name] = {(benchmark.kind_of(child), child.exact) for child in children}
    both = {(f"{name} {way}", way == "larger") for name in ("width", "kernel") for way in ("larger", "smaller")}
    assert kinds["morph"] == both | {
        ("stem width larger", True), ("stem width smaller", False), ("inserted", True), ("removed", False),
        ("convolution plain -> separable", False), ("convolution separable -> plain", True),
        ("skip none -> convex", True), ("skip none -> concat", True), ("skip convex -> none", False),
        ("skip concat -> none", False),
    }  # fmt: skip
    assert kinds["mobilenetv3"] == both | {
        (f"{name} {way}", way == "larger") for name in ("depth", "expand") for way in ("larger", "smaller")
    }


def test_a_curve_and_a_table(benchmark):
    data = load_data("digits")
    space, arch = benchmark.spaces(data, 8)[1]
    torch.manual_seed(0)
    at_once, one, three = benchmark.curve(space.build(arch), data, 8, 0)
    assert at_once < 30
    assert all(0 <= value <= 100 for value in (one, three))
    rows = [
        benchmark.Row("morph", "inserted", True, 2, 98.0, (98.0, 95.0, 97.5), None, (10.0, 20.0, 90.0)),
        benchmark.Row("morph", "removed", False, 1, 98.0, (50.0, 95.0, 97.5), (50.0, 96.0, 98.0), (10.0, 20.0, 90.0)),
    ]
    lines = list(benchmark.table(rows))
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| morph | inserted | yes | 2 | 98.0 | 98.0 / 95.0 / 97.5 |  | 10.0 / 20.0 / 90.0 |"
    assert np.isfinite([at_once, one, three]).all()
