"""The shipped table of trained networks is one of its space, and the script that wrote it goes on where it stopped."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hwnas.blocks import count_params
from hwnas.space import format_arch, parse_arch
from hwnas.spaces.mobilenetv3 import MobileNetV3Space

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("mobilenet_truth")


@pytest.fixture
def toy(benchmark, tmp_path) -> list[str]:
    """Arguments of a run on made-up images that takes no time."""
    settings = benchmark.read_settings()
    settings["space"] |= {"resolutions": [8], "depths": [1, 2], "width_mults": [0.5]}
    settings["images"] |= {"file": "toy.npz", "train": 64, "valid": 8}
    settings["training"]["epochs"] = 1
    (tmp_path / "toy.json").write_text(json.dumps(settings))
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 100), ("test", 20)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % 10
    np.savez(tmp_path / "toy.npz", **arrays)
    return [
        *("--images", str(tmp_path), "--settings", str(tmp_path / "toy.json")),
        *("--output", str(tmp_path / "toy.csv"), "--networks", "2"),
    ]


def test_the_shipped_table_is_one_of_its_space(benchmark):
    settings, rows = benchmark.read_settings(), benchmark.read_table()
    space = MobileNetV3Space(**settings["space"])
    assert len(rows) > 30
    assert len({(row.arch, row.seed) for row in rows}) == len(rows)
    assert {row.arch for row in rows if row.seed == 1} <= {row.arch for row in rows if row.seed == 0}
    for row in rows:
        assert format_arch(space.check(parse_arch(row.arch))) == row.arch
        assert 10 < row.test_accuracy_percent < 100
        assert row.macs == sum(block.macs for block in space.blocks(parse_arch(row.arch)))
    for row in rows[::10]:
        assert row.params == count_params(space.build(parse_arch(row.arch)))


def test_the_networks_are_different_ones(benchmark):
    space = MobileNetV3Space(**benchmark.read_settings()["space"])
    archs = list(benchmark.networks(space))
    assert len(set(archs)) == len(archs) > 900
    assert archs == list(benchmark.networks(space))


def test_a_second_call_trains_only_what_is_missing(benchmark, toy, tmp_path, capsys, monkeypatch):
    benchmark.main(toy)
    first = (tmp_path / "toy.csv").read_text()
    rows = benchmark.read_table(tmp_path / "toy.csv")
    assert [row.seed for row in rows] == [0, 0]
    assert len({row.arch for row in rows}) == 2
    assert capsys.readouterr().out.startswith("2 trainings on 64 images, tested on 20; 0 in the table")

    trained = []
    train = benchmark.train
    monkeypatch.setattr(benchmark, "train", lambda *args, **kwargs: trained.append(args) or train(*args, **kwargs))
    benchmark.main(toy)
    assert not trained
    assert (tmp_path / "toy.csv").read_text() == first

    benchmark.main([*toy, "--repeats", "1"])
    assert len(trained) == 1
    repeated = benchmark.read_table(tmp_path / "toy.csv")
    assert repeated[:2] == rows
    assert [(row.arch, row.seed) for row in repeated[2:]] == [(rows[0].arch, 1)]


def test_no_training_begins_after_the_time(benchmark, toy, tmp_path, capsys):
    benchmark.main([*toy, "--minutes", "-1"])
    assert not (tmp_path / "toy.csv").exists()
    assert "minutes are over" in capsys.readouterr().out


def test_a_training_that_fails_is_said_and_is_no_row(benchmark, toy, tmp_path, capsys, monkeypatch):
    def diverging(*args, **kwargs):
        raise benchmark.TrainingFailed("training diverged")

    monkeypatch.setattr(benchmark, "train", diverging)
    benchmark.main(toy)
    assert not (tmp_path / "toy.csv").exists()
    assert capsys.readouterr().out.count("training diverged") == 2


def test_the_summary_knows_agreement_and_noise(benchmark):
    rows = [benchmark.Row(str(i), 0, 50.0 + i, 100 + i, 1000 - i, 1.0) for i in range(4)]
    again = [benchmark.Row(str(i), 1, 52.0 + i, 100 + i, 1000 - i, 1.0) for i in range(4)]
    _, params, macs, noise = benchmark.summary(rows + again)
    assert params.startswith("params: Kendall 1.000, Spearman 1.000")
    assert macs.startswith("macs: Kendall -1.000, Spearman -1.000")
    assert noise == "another seed (4 networks): Kendall 1.000, Spearman 1.000; noise of one seed 1.41"
    assert list(benchmark.summary(rows[:2])) == []
