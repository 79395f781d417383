"""The benchmark of LEMONADE: what it counts, from networks of a test's making."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("lemonade")


@pytest.fixture
def networks(benchmark: ModuleType) -> list[Any]:
    """Four networks of 8, 8, 2 and 2 epochs; the second is beaten by the first, the last is the slowest and best."""
    rows = [(8, 50.0, 48.0, 1.0), (8, 49.0, 60.0, 2.0), (2, 40.0, 41.0, 0.5), (2, 55.0, 58.0, 3.0)]
    return [benchmark.Trained((n,), epochs, valid, test, ms, 1.0) for n, (epochs, valid, test, ms) in enumerate(rows)]


def test_networks_count_when_their_epochs_are_spent(benchmark: ModuleType, networks: list[Any]) -> None:
    assert [len(benchmark.until(networks, epochs)) for epochs in (7, 8, 17, 18, 20)] == [0, 1, 2, 3, 4]


def test_networks_are_chosen_by_validation_and_judged_by_test(benchmark: ModuleType, networks: list[Any]) -> None:
    yardstick = benchmark.Yardstick(np.array([0.4, 1.5, 2.5]), np.array([90.0, 4.0]))
    assert [one.ms for one in benchmark.front(networks)] == [0.5, 1.0, 3.0]
    found = benchmark.standing(networks, yardstick)
    assert np.isnan(found.best[0])
    assert found.best[1:].tolist() == [48.0, 48.0]
    # errors of the front are 59, 52 and 42 from 0.5, 1 and 3 ms on; the box is 90% times 4 ms
    area = (90 - 59) * 0.5 + (90 - 52) * 2 + (90 - 42) * 1
    assert found.volume == pytest.approx(100 * area / (90 * 4))


def test_the_tables_have_a_row_for_every_quarter_and_arm(benchmark: ModuleType, networks: list[Any]) -> None:
    yardstick = benchmark.Yardstick(np.array([1.0, 2.0, 3.0]), np.array([90.0, 4.0]))
    lines = list(benchmark.growth({"a": [networks, networks[::-1]], "b": [networks, networks]}, yardstick, 20))
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["5 a", "5 b"]
    assert len(lines) == 2 + 4 * 2
    volumes = [benchmark.standing(one, yardstick).volume for one in (networks, networks[::-1])]
    assert lines[-1].endswith(f"| 4 | 48.0 | 48.0 | 58.0 | {volumes[0]:.2f} ({volumes[0]:.2f}, {volumes[0]:.2f}) |")


def test_every_arm_spends_the_budget(benchmark: ModuleType, tmp_path: Path) -> None:
    options = benchmark.argparse.Namespace(folder=tmp_path, space="morph", epochs=8, child_epochs=2, budget=120)
    runs = {arm: benchmark.make_run(options, arm, 0) for arm in benchmark.ARMS}
    assert {arm: run.recipe.search.trainings for arm, run in runs.items()} == {
        "lemonade": 45, "scratch": 15, "random": 15
    }  # fmt: skip
    assert {arm: run.inherits for arm, run in runs.items()} == {"lemonade": True, "scratch": False, "random": False}
