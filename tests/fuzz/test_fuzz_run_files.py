"""The files of a run folder: summary, validation, seconds, what was measured before training; and their pages."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from mutations import bytes_like, fuzz, json_like, refused
from rich.console import Console

from hwnas.confirm import above_limit
from hwnas.pipeline import report_stage
from hwnas.report.html import page
from hwnas.report.summary import Candidate, NetworkRow, RunSummary, TableFacts
from hwnas.report.terminal import front_table, validation_notes, validation_table
from hwnas.report.validation import validation_page
from hwnas.report.wording import verdict
from hwnas.run import Run
from hwnas.validation import (
    Agreement,
    BlockError,
    Coverage,
    NetworkResult,
    Promise,
    SystematicError,
    TableValidation,
    WorstCase,
)

# characters that a terminal or a browser obeys and does not show
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
NETWORK = NetworkRow(
    name="net-1", arch="0-1", choice={"width": 8, "op": "conv"}, accuracy=91.5, valid_accuracy=90.5, predicted_ms=1.5,
    predicted_low_ms=1.4, predicted_high_ms=1.6, measured_ms=1.55, measured_low_ms=1.5, measured_high_ms=1.6,
    refused=None, macs=1000, params=100, file="export/net-1.onnx", size_bytes=500, within_limit=True,
)  # fmt: skip
SUMMARY = RunSummary(
    name="toy", created="2026-01-01", version="1", space={"name": "s", "widths": [8, 16]},
    target={"device": "local", "threads": 1, "cpu": "c"}, limits={"latency_ms": 2.0},
    networks=(NETWORK,),
    candidates=(Candidate("0-1", {"zen": 3.5}, 1.5, 90.5), Candidate("0-2", {"zen": 2.5}, 1.0, None)),
    without_vote={"snip": -0.5}, table=TableFacts("t.json", 10, 5, 0.02, 0.05, 0.01), seconds={"train": 3.5},
    recipe='name = "toy"\n', warnings=("careful",),
)  # fmt: skip
VALIDATION = TableValidation(
    schema="hwnas-table-validation", version=1, hwnas="1", created="2026-01-01", command="hwnas validate",
    table="t.json", table_created="2026-01-01", rows=10, estimated_rows=1, target={"device": "local"},
    space={"name": "s"}, seed=0, seconds=3.5, promise=Promise(5, 0.02, 0.01),
    networks=(
        NetworkResult("0-1", {"w": 8}, "uniform", 1.5, 1.4, 1.6, 1.65, 1.7, 1.6, 1.8, None, 1.7, None, 0.01),
        NetworkResult("0-2", {"w": 16}, "spread", 2.5, 2.4, 2.6, None, None, None, None, "noisy", None, None, None),
    ),
    agreement=Agreement(1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1, None, None, 1, 0.01),
    by_draw={"uniform": 0.1}, interval=Coverage(0.9, 1, 1, 9, 0.1, 1.0, "as promised"), upper=None, anchor_drift=0.01,
    worst=(
        WorstCase("0-1", 1.5, 1.7, 0.1, 0.05, 0.9, (BlockError("b0", "c", "measured", 0.5, 0.4, 0.6, 0.1, 0.5),), None),
    ),
    systematic=(SystematicError("block", "conv", "measured", 3, 0.1, 0.01, 0.001, 0),),
    judgement="holds", verdict="good", notes=("note",),
)  # fmt: skip


def shown(*rendered: Any) -> str:
    out = Console(file=io.StringIO(), width=80)
    for each in rendered:
        out.print(each)
    return cast(io.StringIO, out.file).getvalue()


def show_summary(text: str) -> None:
    summary = RunSummary.from_json(text)
    summary.to_json()
    pages = page(summary)
    visible, terminal = pages[: pages.index("<script")], shown(front_table(summary), verdict(summary))
    for written in (visible, terminal):
        assert not CONTROL.search(written)


def show_validation(text: str) -> None:
    result = TableValidation.from_json(text)
    result.to_json()
    pages = validation_page(result)
    visible = pages[: pages.index("<script")]
    terminal = shown(validation_table(result), *validation_notes(result))
    for written in (visible, terminal):
        assert not CONTROL.search(written)


def test_good_files_are_shown() -> None:
    show_summary(SUMMARY.to_json())
    show_validation(VALIDATION.to_json())


@fuzz
@given(text=json_like(SUMMARY.to_json()))
def test_a_summary(text: str) -> None:
    refused(lambda: show_summary(text))


@fuzz
@given(text=json_like(VALIDATION.to_json()))
def test_a_validation(text: str) -> None:
    refused(lambda: show_validation(text))


@fuzz
@given(data=bytes_like(SUMMARY.to_json().encode()))
def test_the_file_of_a_summary(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "summary.json").write_bytes(data)
    refused(lambda: report_stage(tmp_path / "run"), tmp_path / "run")


def run_in(folder: Path) -> Run:
    """A run of which only its folder and the latency limit are asked for."""
    recipe = SimpleNamespace(folder=folder, search=SimpleNamespace(latency=2.0), profile=SimpleNamespace(table=None))
    return Run(cast(Any, recipe), "")


def test_good_records_are_read(tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_text('{"train": 3.5}')
    (tmp_path / "confirmed.json").write_text('{"0-1": 2.5, "0-2": null, "0-3": 1}')
    assert run_in(tmp_path).seconds() == {"train": 3.5}
    assert above_limit(run_in(tmp_path), [(0, 1), (0, 2), (0, 3)], measure=False) == {(0, 1): 2.5}


@fuzz
@given(text=json_like('{"train": 3.5, "profile": 10}'))
def test_seconds(text: str, tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_bytes(text.encode(errors="surrogatepass"))
    found: dict[str, float] = {}
    refused(lambda: found.update(run_in(tmp_path).seconds()))
    assert all(0 <= value < float("inf") for value in found.values())


@fuzz
@given(text=json_like('{"0-1": 2.5, "0-2": null, "0-3": 1}'))
def test_what_was_measured_before_training(text: str, tmp_path: Path) -> None:
    (tmp_path / "confirmed.json").write_bytes(text.encode(errors="surrogatepass"))
    refused(lambda: above_limit(run_in(tmp_path), [(0, 1), (0, 2), (0, 3)], measure=False))
