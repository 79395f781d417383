"""A run in int8 alone: its own files keep sensitive blocks in float, as those of `hwnas export --format` do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from toy_runs import recipe_text, table_path, toy_run

from hwnas.card import read_card
from hwnas.export.sensitive import Choice
from hwnas.exporting import _in_int8, export_stage
from hwnas.results import exported_file, on_target
from hwnas.run import Run, train_study
from hwnas.search.study import record_trial
from hwnas.space import Arch
from hwnas.trained import build, front_members, save_weights, weights_path
from hwprof.table import read_table, write_table
from hwprof.target import Target

ARCH: Arch = (0, 0, 0, 3, 0, 0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    text = recipe_text(tmp_path, "TPESampler").replace("nasbench201.json", "int8.json")
    tables = (
        f'[target]\nprecision = "int8"\n[quantise]\nmax_drop = 2.5\n[profile]\ntables = "{tmp_path.as_posix()}/t"\n'
    )
    run = toy_run(text.replace("[profile]\n", tables))
    table = read_table(Path(table_path(tmp_path, "nasbench201")))
    write_table(replace(table.scaled(0.5), target=run.target), run.table_path)
    run.open_folder()
    record_trial(train_study(run), run.space, ARCH, (50.0, 1.0))
    save_weights(build(run, ARCH), weights_path(run, ARCH))
    return run


def choosing(found: Choice, patch: pytest.MonkeyPatch) -> None:
    def choose(*_: Any, max_drop: float, worth: Any, **__: Any) -> Choice:
        assert max_drop == 2.5
        assert worth(found.in_float), "nothing plainer is offered, so that it always pays"
        return found

    patch.setattr("hwnas.precisions.choose_in_float", choose)


def test_sensitive_blocks_stay_in_float(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    position, block = run.space.placed_blocks(ARCH)[0]
    choosing(Choice((position.name,), 40.0, 50.0, False), monkeypatch)
    summary = export_stage(run)
    (row,), file = summary.networks, exported_file(run, ARCH)
    assert (row.in_float, row.within_drop, row.verdict.deployable) == ((position.name,), False, False)
    assert row.valid_accuracy == 50.0, "what the search went by"
    assert row.predicted_low_ms is None
    for words in ("as if all of it were in int8", "loses more than the 2.5 points"):
        assert any(words in each for each in summary.warnings)
    graph = onnx.load(file).graph
    floats = {tensor.name for tensor in graph.initializer}
    assert sum(node.input[1] in floats for node in graph.node if node.op_type == "Conv") == 1
    card = read_card(file.with_name(f"{file.name}.json"))
    assert (card.deployable, card.not_deployable) == (False, "loses more accuracy than quantise.max_drop allows")
    text = file.with_name(f"{file.name}.json").read_text()
    assert f'"in_float": [\n  "{position.name}"\n ],\n "max_drop": 2.5,\n "within_drop": false' in text
    # with a table of what they take in float, the prediction knows of them; the choice is on record
    (low,), unforeseen = _in_int8(run, front_members(run))
    assert (low.in_float, low.latency_ms, unforeseen) == ((position.name,), row.predicted_ms, {low})
    table = read_table(Path(table_path(run.folder.parents[1], "nasbench201")))
    write_table(table, on_target(run, Target(precision="fp32")).table_path)
    (mixed,), unforeseen = _in_int8(run, front_members(run))
    assert mixed.latency_ms == pytest.approx(low.latency_ms + table.rows[block.key].ms / 2)
    assert not unforeseen


def test_where_eight_bits_ruin_no_block_all_are_in_int8(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    choosing(Choice((), 49.0, 50.0, True), monkeypatch)
    (member,), unforeseen = _in_int8(run, front_members(run))
    assert (member.in_float, member.within_drop, unforeseen) == ((), True, set())
