"""The benchmark of rules that stop trainings: what it reads, simulates and prints, on a few cells and curves."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from made_curves import saturating

from hwnas.search.fidelity import make_stopper
from hwnas.space import parse_arch

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("multi_fidelity")


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    """Arguments: made-up accuracies and latencies of 300 cells."""
    rng = np.random.default_rng(0)
    cells = rng.permutation(5**6)[:300]
    with gzip.open(tmp_path / "truth.csv.gz", "wt") as truth, gzip.open(tmp_path / "ms.csv.gz", "wt") as latency:
        truth.write("index,ops,c10_valid_12,c10_valid_200,train_seconds_200_c10valid\n")
        latency.write("index,toaster,kettle\n")
        for index, cell in enumerate(cells.tolist()):
            ms = rng.uniform(1, 5)
            final = 60 + 5 * ms + rng.normal(0, 5)
            truth.write(f"{index},{np.base_repr(cell, 5):0>6},{final - 20 + rng.normal():.3f},{final:.3f},{300 * ms}\n")
            latency.write(f"{index},{ms},{ms + rng.uniform(0, 1)}\n")
    return ["--truth", str(tmp_path / "truth.csv.gz"), "--latency", str(tmp_path / "ms.csv.gz")]


def test_searches_on_a_table(benchmark: ModuleType, tables: list[str], capsys, monkeypatch) -> None:
    rules = ("none", "halving, eta 3", "curves, chance 0.1")
    monkeypatch.setattr(benchmark, "TABLE_RULES", {rule: benchmark.TABLE_RULES[rule] for rule in rules})
    benchmark.main(["table", *tables, "--devices", "toaster,kettle", "--seeds", "2", "--trials", "40"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("latency on toaster, kettle; 2 seeds;")
    shown = [line for line in lines if line.startswith(rules)]
    assert len(shown) == 2 * len(rules)
    saved = [float(line.split("|")[1].split()[0]) for line in shown]
    assert saved[0] == saved[3] == 0
    assert all(value > 20 for value in (*saved[1:3], *saved[4:]))
    with pytest.raises(SystemExit, match="no device 'fridge'; it has toaster, kettle"):
        benchmark.main(["table", *tables, "--devices", "fridge"])


def test_a_search_counts_what_it_trains(benchmark: ModuleType, tables: list[str]) -> None:
    cells = benchmark.read_cells(Path(tables[1]), Path(tables[3]), "toaster")
    losses = benchmark.scaled_losses(cells)
    assert losses[benchmark.nondominated(losses)].min() == 0
    whole, halved = (
        benchmark.search(cells, losses, "random", make_stopper(name, options, 200), 1, 50, 40_000.0)
        for name, options in (("none", {}), ("successive_halving", {"min_epochs": 12}))
    )
    rows = np.random.default_rng(1).permutation(300)
    assert whole.seconds == pytest.approx(cells.seconds[rows[:50]].sum())
    assert whole.trainings == int((np.cumsum(cells.seconds[rows]) <= 40_000).sum())
    assert (whole.stopped, whole.wrong) == (0, 0)
    assert halved.seconds < 0.6 * whole.seconds
    assert halved.trainings > whole.trainings
    assert 0 <= halved.wrong < halved.stopped
    assert halved.at_trials <= whole.at_trials <= 100
    # beyond the 300 cells of the table nothing can be proposed
    assert benchmark.search(cells, losses, "random", make_stopper("none", {}, 200), 1, 50, 1e9).trainings == 300


def test_evolved_proposals_are_new_and_better(benchmark: ModuleType, tables: list[str]) -> None:
    cells = benchmark.read_cells(Path(tables[1]), Path(tables[3]), "toaster")
    losses = np.tile(((cells.ops == 3).sum(axis=1) / -6.0)[:, None], 2)  # as good as it has convolutions
    finished: list[int] = []
    for row in benchmark.evolved_proposals(cells, losses, finished, np.random.default_rng(0)):
        finished.append(row)
        if len(finished) == 120:
            break
    assert len(set(finished)) == 120
    assert losses[finished[20:]].mean() < losses[finished[:20]].mean()


def test_rules_replayed_on_recorded_curves(benchmark: ModuleType, tmp_path: Path, capsys, monkeypatch) -> None:
    recorded = tmp_path / "curves.jsonl"
    with pytest.raises(SystemExit, match="record them with --images"):
        benchmark.main(["curves", "--curves", str(recorded)])
    rows = [
        {"arch": str(one.number), "macs_m": one.known["latency"], "curve": one.curve, "seconds": 2.0}
        for one in saturating(20, benchmark.EPOCHS, seed=0)
    ]
    recorded.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = ("halving, eta 3", "curves, chance 0.1")
    monkeypatch.setattr(benchmark, "CURVE_RULES", {rule: benchmark.CURVE_RULES[rule] for rule in rules})
    benchmark.main(["curves", "--curves", str(recorded), "--orders", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("20 networks of 16 epochs, 40 s of training")
    assert [line[:12] for line in lines[2:6]] == ["at random   ", "latest value", "halving, eta", "curves, chan"]


def test_the_shipped_curves_are_whole(benchmark: ModuleType) -> None:
    """40 different networks, each with a value after every epoch, in the order in which they would be trained again."""
    curves = importlib.import_module("multi_fidelity_curves")
    rows = benchmark.read_curves(benchmark.CURVES)
    assert len({row.arch for row in rows}) == len(rows) == 40
    assert all(len(row.curve) == benchmark.EPOCHS and 0 <= min(row.curve) <= max(row.curve) <= 100 for row in rows)
    for row in rows:
        macs = sum(block.macs for block in curves.SPACE.blocks(parse_arch(row.arch)))
        assert row.macs_m == pytest.approx(macs / 1e6)
    assert list(curves.record_curves(benchmark.CURVES, Path("nowhere"), 40)) == []


def test_curves_are_recorded_once(benchmark: ModuleType, tmp_path: Path, monkeypatch) -> None:
    """On scikit-learn's digits, grey as Fashion-MNIST is, for one epoch."""
    curves = importlib.import_module("multi_fidelity_curves")
    from hwnas.train.data import load_data

    digits = load_data("digits", image_size=16)
    monkeypatch.setattr(curves, "EPOCHS", 1)
    monkeypatch.setattr(curves, "TRAIN_IMAGES", 80)
    monkeypatch.setattr(curves, "load_data", lambda source, root, image_size: digits)
    path = tmp_path / "curves.jsonl"
    first = list(curves.record_curves(path, tmp_path, 1))
    more = list(curves.record_curves(path, tmp_path, 2))
    assert [len(first), len(more)] == [1, 1]
    assert curves.read_curves(path) == [*first, *more]
    assert all(len(row.curve) == 1 and 0 <= row.curve[0] <= 100 and row.macs_m > 0 for row in first + more)
    monkeypatch.setattr(curves, "load_data", lambda *_, **__: pytest.fail("nothing is left to train"))
    assert list(curves.record_curves(path, tmp_path, 2)) == []
