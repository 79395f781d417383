"""Several precisions in one run: which networks are offered in which, and what stays on disk."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn
from toy_runs import SPACES, recipe_text, toy_run

from hwnas import precisions
from hwnas.confirm import above_limit
from hwnas.errors import RunError
from hwnas.export.sensitive import Choice
from hwnas.latency.index import BlockIndex
from hwnas.limits import known_limits
from hwnas.pipeline import search_stage
from hwnas.precisions import offered, predicted_ms
from hwnas.run import Run, train_study
from hwnas.search.study import recorded
from hwnas.space import Arch
from hwnas.spaces import make_space
from hwnas.trained import front_members, trained_front
from hwprof.table import LatencyTable, Row, write_table
from hwprof.target import Target

SMALL: Arch = (0, 0, 0, 0, 0, 1)  # nothing but a skip
LARGE: Arch = (3, 3, 3, 3, 3, 3)  # convolutions of 3x3


def tables(folder: Path, gain: Callable[[str], float]) -> list[str]:
    """Made-up tables in fp32 and int8, by how many times as fast a block is in int8."""
    index = BlockIndex(make_space("nasbench201", SPACES["nasbench201"]))
    paths = []
    for precision in ("fp32", "int8"):
        rows = {
            block.key: Row((1e-3 + 1e-6 * block.macs) / (gain(block.key) if precision == "int8" else 1), 0.0, 1)
            for block in index.blocks
        }
        path = folder / f"{precision}.json"
        write_table(LatencyTable(Target(precision=precision), {"cpu": "none"}, {}, 0.001, (), None, rows), path)
        paths.append(path.as_posix())
    return paths


def run_of(folder: Path, *, gain: Callable[[str], float] = lambda key: 2.0, search: str = "", drop: float = 100) -> Run:
    text = recipe_text(folder, "TPESampler", search=search)
    head, rest = text.split("[profile]\ntable = ")
    rest = rest.split("\n", 1)[1]
    listed = json.dumps(tables(folder, gain))
    return toy_run(
        f'{head}[target]\nprecision = ["fp32", "int8"]\n[quantise]\nmax_drop = {drop}\n'
        f"[profile]\ntable = {listed}\n{rest}"
    )


def never() -> nn.Module:
    raise AssertionError("this network was assessed before, or need not be")


def test_a_search_mixes_precisions_and_a_second_one_assesses_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    search_stage(run)
    trials, members = recorded(train_study(run)), front_members(run)
    assert {member.precision for member in members} >= {"int8"}, "twice as fast"
    for member in members:
        matrix = np.array([member.arch])
        assert member.latency_ms == run.at(member.precision).predictor.predict_ms(matrix)[0]
        assert run.predictor.predict_ms(matrix)[0] == trials[member.arch].values[1], "trials have the least"
        assert member.within_drop
    for worse, better in itertools.pairwise(members):
        assert worse.latency_ms <= better.latency_ms
        assert worse.accuracy <= better.accuracy
    assert trained_front(run) == list(dict.fromkeys(member.arch for member in members))
    record = json.loads((run.folder / "precisions.json").read_text())
    assert len(record["networks"]) == len(trials) == 6
    again = toy_run(run.recipe_text)
    for arch, trial in trials.items():
        both = offered(again, arch, trial.values[0], never)
        assert [member.precision for member in both] == ["fp32", "int8"]
        assert both[0].accuracy == trial.values[0]
    assert front_members(again) == members


def test_int8_is_not_offered_where_it_is_slower(tmp_path: Path) -> None:
    run = run_of(tmp_path, gain=lambda key: 2.0 if "conv" in key and "3x3" in key else 0.5)
    run.open_folder()
    (only,) = offered(run, SMALL, 50.0, never)
    assert (only.precision, only.accuracy, only.in_float) == ("fp32", 50.0, ())


def test_what_is_within_the_limit_in_one_precision_is_offered_in_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, search='latency = "1 us"')
    both = [predicted_ms(run, LARGE, precision) for precision in ("fp32", "int8")]
    between = (both[0] + both[1]) / 2
    run = run_of(tmp_path, search=f'latency = "{between * 1000} us"')
    monkeypatch.setattr(precisions, "assessed", lambda *_: Choice((), 40.0, 50.0, True))
    (_, quantity), *_ = known_limits(run)
    assert quantity(np.array([LARGE]))[0] == pytest.approx(both[1]) != pytest.approx(both[0])
    assert [member.precision for member in offered(run, LARGE, 50.0, never)] == ["int8"]
    assert above_limit(run, [LARGE]) == {}, "a table from elsewhere: not measured"


def test_with_a_confidence_the_bound_keeps_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "assessed", lambda *_: Choice((), 40.0, 50.0, True))
    run = run_of(tmp_path, search='latency = "1 ms"\nconfidence = 0.9')
    for precision, ms, upper in (("fp32", 0.9, 1.1), ("int8", 0.8, 0.95)):
        run.at(precision).predictor = SimpleNamespace(
            index=None, predict_ms=lambda _, ms=ms: np.array([ms]), upper_ms=lambda *_, upper=upper: np.array([upper])
        )
    assert [member.precision for member in offered(run, LARGE, 50.0, never)] == ["int8"]
    run = run_of(tmp_path, search='latency = "1 us"')
    assert [member.precision for member in offered(run, LARGE, 50.0, never)] == ["int8"], "where nothing keeps it"


def test_blocks_in_float_cost_what_they_do_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path)
    placed = run.space.placed_blocks(LARGE)
    everything = [position.name for position, _ in placed]
    plain, low = (predicted_ms(run, LARGE, precision) for precision in ("fp32", "int8"))
    assert predicted_ms(run, LARGE, "int8", everything) == pytest.approx(plain)
    stem = predicted_ms(run, LARGE, "int8", everything[:1])
    row = run.at("fp32").table.rows[placed[0][1].key].ms
    assert stem == pytest.approx(low + row / 2)
    monkeypatch.setattr(precisions, "assessed", lambda *_: Choice((everything[0],), 40.0, 50.0, False))
    member = offered(run, LARGE, 50.0, never)[-1]
    assert (member.latency_ms, member.in_float, member.within_drop) == (stem, (everything[0],), False)


def test_sensitive_blocks_are_looked_for_only_while_that_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, bool] = {}

    def choose(*_: object, max_drop: float, worth: Callable[[list[str]], bool], **__: object) -> Choice:
        everything = [position.name for position, _ in run.space.placed_blocks(LARGE)]
        asked.update(one=worth(everything[:1]), all=worth(everything), drop=max_drop == 2.5)
        return Choice((), 40.0, 50.0, False)

    monkeypatch.setattr(precisions, "choose_in_float", choose)
    run = run_of(tmp_path, drop=2.5)
    run.open_folder()
    offered(run, LARGE, 50.0, lambda: run.space.build(LARGE))
    assert asked == {"one": True, "all": False, "drop": True}


def test_a_network_that_a_precision_ruins_is_not_offered_in_it(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.open_folder()

    def infinite() -> nn.Module:
        module = run.space.build(LARGE)
        for parameter in module.parameters():
            nn.init.constant_(parameter, 3e38)
        return module

    for network in (infinite, never):  # the second time from the record
        assert [member.precision for member in offered(run, LARGE, 50.0, network)] == ["fp32"]
    assert "not finite" in json.loads((run.folder / "precisions.json").read_text())["networks"]["3-3-3-3-3-3"]["int8"]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.open_folder()
    (run.folder / "precisions.json").write_text('{"networks": {"0-0-0-0-0-1": {"int8": {"accuracy": "90"}}}}')
    with pytest.raises(RunError, match=r"precisions.json cannot be used: networks.0-0-0-0-0-1.int8"):
        offered(run, SMALL, 50.0, never)
