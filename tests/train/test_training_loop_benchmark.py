"""The comparison of training loops: every loop learns, and its table says what it should."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hwnas.train.data import load_data

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("training_loop")


def test_every_loop_learns(benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SIZE", 8)
    data = benchmark.part(load_data("digits"), 800, 100)
    assert (len(data.x_train), len(data.y_valid), len(data.x_test)) == (800, 100, 100)
    options = argparse.Namespace(epochs=4, batch=32, device="cpu")
    for loop in (benchmark.ours, benchmark.in_memory, benchmark.torchvision_style(0)):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, stride=2), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(144, 10),
        )  # fmt: skip
        assert loop(module, data, options) > 40  # chance is 10


def test_networks_read_images_of_its_size(benchmark) -> None:
    data = load_data("digits")
    for build in benchmark.NETWORKS.values():
        assert build(data).eval()(torch.zeros(2, 1, benchmark.SIZE, benchmark.SIZE)).shape == (2, 10)


def test_a_ratio_is_of_one_round_and_above_one_where_ours_is_faster(benchmark) -> None:
    lines = list(
        benchmark.table({"ours": ([1.0, 2.0, 2.0], [90.0, 91.0, 92.0]), "plain": ([2.0, 3.0, 2.5], [80.0] * 3)}, 100)
    )
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| ours | 2.00 | 50 | 91.0 | 1.000 (1.000 to 1.000) |"
    assert lines[3] == "| plain | 2.50 | 40 | 80.0 | 1.500 (1.250 to 2.000) |"
