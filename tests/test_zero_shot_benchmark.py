"""The benchmarks of zero-shot scores: what they read, count and print, on a few cells."""

from __future__ import annotations

import gzip
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CELLS = ("333133", "111111", "000000", "423133", "203031", "123401", "330000", "400123", "222222", "313131")


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("zero_shot")


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("zero_shot_search")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments: made-up accuracies of a few cells, and images."""
    with gzip.open(tmp_path / "truth.csv.gz", "wt") as file:
        file.write("index,ops,c10_test_200\n")
        file.writelines(f"{n},{ops},{60 + 3 * n}\n" for n, ops in enumerate(CELLS))
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=images, y_train=np.arange(40) % 10)
    return ["--truth", str(tmp_path / "truth.csv.gz"), "--images", str(tmp_path)]


def test_cells_are_scored_once_and_ranked(
    quality: ModuleType, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    arguments = ["cells", *files, "--networks", "10", "--batch", "4", "--draws", "2", "--workers", "1"]
    arguments += ["--scores", "params,macs", "--cache", str(tmp_path / "cache.jsonl")]
    quality.main(arguments)
    first = capsys.readouterr().out
    assert "10 networks, accuracy 60.0 to 87.0%; 1 in the best tenth" in first
    assert [line.split()[0] for line in first.splitlines()[2:4]] == ["params", "macs"]
    monkeypatch.setattr(quality.Scorers, "score", lambda _, archs: iter(()) if not archs else pytest.fail("again"))
    quality.main(arguments)
    assert [line[:-9] for line in capsys.readouterr().out.splitlines()] == [line[:-9] for line in first.splitlines()]
    with pytest.raises(SystemExit, match="another --cache"):
        quality.main([*arguments, "--seed", "1"])


def test_intervals_hold_the_value(quality: ModuleType) -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(60)
    words = quality.with_intervals(truth + rng.standard_normal(60), truth).replace("[", "").replace("]", "").split()
    tau, low, high, rho, low_rho, high_rho = (float(word.strip(",")) for word in words)
    assert low < tau < high
    assert tau < rho
    assert low_rho < rho < high_rho
    assert quality.agreement(np.ones(5), truth[:5]) == (0.0, 0.0)


def test_equal_cells_count_as_often_as_they_are_in_the_table(quality: ModuleType, files: list[str]) -> None:
    cells = quality.read_cells(Path(files[1]), 100)
    assert len(cells) == len(CELLS)
    dead = quality.make_space("nasbench201", {}).canonical(np.zeros((1, 6), dtype=np.int64))[0]
    assert dict(cells)[tuple(dead.tolist())] in {60.0 + 3 * n for n in range(10)}
    others = quality.read_cells(Path(files[1]), 100, skip=4)
    assert others == [cell for cell in cells[4:] if cell[0] not in dict(cells[:4])]
    assert 0 < len(others) <= len(CELLS) - 4


def test_mobile_networks_have_the_mean_of_their_trainings(quality: ModuleType, monkeypatch) -> None:
    truth = importlib.import_module("mobilenet_truth")
    rows = [truth.Row("0-1", 0, 50.0, 1, 1, 1.0), truth.Row("0-2", 0, 60.0, 1, 1, 1.0)]
    monkeypatch.setattr(quality, "read_table", lambda: [*rows, truth.Row("0-1", 1, 54.0, 1, 1, 1.0)])
    assert quality.read_mobile_networks() == [((0, 1), 52.0), ((0, 2), 60.0)]


@pytest.mark.parametrize(("k", "best"), [(1, 2.0), (2, 8 / 3), (3, 3.0), (9, 3.0)])
def test_the_expected_best_of_some(search: ModuleType, k: int, best: float) -> None:
    assert search.expected_best(np.array([2.0, 3.0, 1.0]), k) == pytest.approx(best)


def test_values_are_found_by_cell(search: ModuleType) -> None:
    table = search.by_cell({"7": "000000", "9": "313240"}, {"7": "1.5", "9": "2.5"})
    assert table[search.numbers(np.array([[0] * 6, [3, 1, 3, 2, 4, 0]]))].tolist() == [1.5, 2.5]
    assert np.isnan(table[1])
