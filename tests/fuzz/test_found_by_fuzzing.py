"""What the fuzzing of readers has found, each once: an error of ours now, which says what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mutations import harmless
from test_fuzz_journals import GROUP, HEADER, OBJECTIVES, lines
from test_fuzz_run_files import SUMMARY, run_in, show_summary, shown
from test_fuzz_tables import SPACE, TRANSFER, VALUES, predict, resealed, table

from hwnas.confirm import above_limit
from hwnas.errors import HwnasError, PredictorError, RecipeError, RunError, SpaceError
from hwnas.latency import session
from hwnas.latency.check import Check, reanchored
from hwnas.latency.fewshot import read_times
from hwnas.latency.importers import import_table
from hwnas.recipe import parse_recipe
from hwnas.report.markup import join, tag
from hwnas.report.terminal import front_table
from hwnas.saved import LARGEST
from hwnas.search.study import ARCH, failed, open_study, recorded
from hwnas.space import parse_arch
from hwprof import table as tables
from hwprof.answers import Nonsense, read_recorded
from hwprof.errors import HwprofError, MeasurementError, TableError
from hwprof.files import read_bounded
from hwprof.journal import Journal
from hwprof.merge import merge_tables
from hwprof.runtimes.arrays import read_arrays
from hwprof.runtimes.ncnn_files import input_shapes, read_text
from hwprof.table import Row, load_table, read_table
from hwprof.target import Target

DEEP, DIGITS = "[" * 100_000, "9" * 5000


def transfer(**said: Any) -> str:
    return resealed({**TRANSFER, "provenance": {**TRANSFER["provenance"], "transfer": said}})


def summary(text: str) -> Callable[[Path], object]:
    return lambda folder: show_summary(text)


def written(name: str, text: str | bytes, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """What reads the folder after a file was written in it."""

    def then(folder: Path) -> object:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return read(folder)

    return then


def seconds(text: str | bytes) -> Callable[[Path], object]:
    return written("seconds.json", text, lambda folder: run_in(folder).seconds())


def confirmed(text: str | bytes) -> Callable[[Path], object]:
    return written("confirmed.json", text, lambda folder: above_limit(run_in(folder), [(0, 1)], measure=False))


def journal(*records: bytes) -> Callable[[Path], object]:
    text = lines(HEADER) + b"".join(record + b"\n" for record in records)
    return written("j", text, lambda folder: Journal(folder / "j", HEADER, session.check))


def group(**changed: Any) -> bytes:
    return lines({**GROUP, **changed}).rstrip()


def published(text: str) -> Callable[[Path], object]:
    return written("t.csv", text, lambda folder: import_table(folder / "t.csv", target=Target(), format="csv"))


def ncnn(layers: str) -> Callable[[Path], object]:
    """The two files of a model that others wrote, without checksums."""

    def read(folder: Path) -> object:
        text = f"7767517\n{len(layers.splitlines())} 2\n{layers}\n"
        (folder / "net.param").write_text(text, encoding="utf-8")
        (folder / "net.bin").write_bytes(b"")
        return input_shapes(read_text(folder / "net.param"))

    return read


def vast_npy() -> bytes:
    """A .npy file whose header says more than there is memory."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


HEADING = "key,mean_ms,std_ms,count\n"
CASES: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "recipe, deep": (lambda _: parse_recipe(f"name = {DEEP}"), RecipeError, "is not valid TOML"),
    "recipe, digits": (lambda _: parse_recipe(f'name = "a"\nseed = {DIGITS}'), RecipeError, "is not valid TOML"),
    "recipe, infinite": (
        lambda _: parse_recipe('name = "a"\n[search]\nlatency = "1e999 ms"'), RecipeError, "absurdly large",
    ),
    "arch, digits": (lambda _: parse_arch(f"0-{DIGITS}"), SpaceError, "is written like 0-2-1"),
    "arch, no text": (lambda _: parse_arch(cast(Any, 3)), SpaceError, "is written like 0-2-1"),
    "table, row's name obeyed": (
        lambda _: load_table(resealed({**VALUES, "rows": {"\x1b[31m": {"ms": 1.0, "spread": 0.0, "count": 1}}})),
        TableError, r"rows has the name '\\x1b\[31m', must be at most 1000 characters without control",
    ),
    "table, half a character": (
        lambda _: load_table(resealed({**VALUES, "fingerprint": {"cpu": "\ud800"}})), TableError, "fingerprint has",
    ),
    "table, long name": (
        lambda _: load_table(resealed({**VALUES, "target": {"runtime": "x" * 1001}})), TableError, "target has",
    ),
    "table, list of names": (
        lambda _: load_table(resealed({**VALUES, "models": [{**VALUES["models"][0], "name": []}]})),
        TableError, r"models has the name '\[\]'",
    ),
    "transfer, no sources": (lambda here: predict(transfer(seed=0), here), TableError, "lacks a part of its transfer"),
    "transfer, a list": (
        lambda here: predict(resealed({**TRANSFER, "provenance": {"transfer": []}}), here), TableError, "lacks a part",
    ),
    "transfer, elsewhere": (
        lambda here: predict(transfer(seed=0, sources=[{"path": "/etc/passwd", "sha256": ""}]), here),
        TableError, "source '/etc/passwd', no relative path",
    ),
    "transfer, path of zeros": (
        lambda here: predict(transfer(seed=0, sources=[{"path": "a\0b", "sha256": ""}]), here),
        TableError, "no relative path",
    ),
    "transfer, seed": (
        lambda here: predict(transfer(seed=1.5, sources=[]), here), TableError, "seed '1.5', no whole number",
    ),
    "merge, overflow": (
        lambda _: merge_tables([one_row(1e200), one_row(2e200)], prefer="pooled"),
        TableError, "too large or too small to compute with",
    ),
    "import, overflow": (
        published(f"{HEADING}a,1e200,1e200,2\n"), TableError, r"too large or too small to compute with .*--unit",
    ),
    "times, no CSV": (
        lambda _: read_times(SPACE, "network,file,ms\n" + "x" * 200_000, "t.csv"), PredictorError, r"t\.csv is no CSV",
    ),
    "journal, deep": (journal(DEEP.encode()), TableError, "is damaged"),
    "journal, NaN": (journal(group(drift=float("nan"))), TableError, "is damaged .*NaN is no measurement"),
    "journal, digits": (journal(group(seconds=10**400)), TableError, "is damaged .* is not between"),
    "journal, no results": (journal(group(results=None)), TableError, "is damaged .*is not a list"),
    "journal, result twice": (journal(group(results=GROUP["results"][:1] * 2)), TableError, "is there twice"),
    "journal, phase": (journal(group(phase=3)), TableError, "is damaged .*its phase is '3'"),
    "seconds, digits": (seconds('{"train": ' + "1" * 400 + "}"), RunError, "train: .*; delete it"),
    "seconds, NaN": (seconds('{"train": NaN}'), RunError, "train: .*; delete it"),
    "seconds, below 0": (seconds('{"train": -1}'), RunError, "train: .*; delete it"),
    "seconds, deep": (seconds(DEEP), RunError, "the whole text: .*; delete it"),
    "seconds, bytes": (seconds(b"\xff"), RunError, "is damaged .*; delete it"),
    "confirmed, text": (confirmed('{"0-1": "1"}'), RunError, "0-1.*; delete it, its networks"),
    "confirmed, NaN": (confirmed('{"0-1": NaN}'), RunError, "0-1.*; delete it, its networks"),
    "confirmed, bytes": (confirmed(b"\xff"), RunError, "is damaged .*; delete it, its networks"),
    "inputs, vast": (
        written("x.npy", vast_npy(), lambda folder: read_arrays([str(folder / "x.npy")])),
        MeasurementError, "the inputs cannot be read",
    ),
    "ncnn, digits of a shape": (ncnn(f"Input x 0 1 x 0={DIGITS}"), MeasurementError, "the input x has no shape"),
    "ncnn, other digits": (ncnn("Input x 0 1 x 0=8\nReLU y ١ 1 x y"), MeasurementError, "no .param file"),
    "ncnn, digits of a number": (ncnn(f"Input x 0 {DIGITS} x"), MeasurementError, "no .param file"),
    "summary, large": (summary(" " * (LARGEST + 1)), RunError, "as no such file has"),
}  # fmt: skip


def one_row(ms: float) -> tables.LatencyTable:
    return replace(table(), rows={"a": Row(ms, 1.0, 2)}, models=())


@pytest.mark.parametrize("case", CASES)
def test_it_is_an_error_of_ours(case: str, tmp_path: Path) -> None:
    read, error, message = CASES[case]
    assert issubclass(error, HwnasError | HwprofError)
    with harmless(tmp_path), pytest.raises(error, match=f"(?s){message}"):
        read(tmp_path)


def test_a_table_of_many_models_is_read_in_no_time() -> None:
    models = [{**VALUES["models"][0], "name": f"{number}"} for number in range(30_000)]
    assert len(load_table(resealed({**VALUES, "models": models})).models) == 30_000
    with pytest.raises(TableError, match="holds the model '29999' twice"):
        load_table(resealed({**VALUES, "models": [*models, models[-1]]}))


def test_files_that_are_too_long_or_never_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.json").write_bytes(b"x" * 10)
    assert read_bounded(tmp_path / "t.json", 10) == b"x" * 10
    with pytest.raises(ValueError, match="longer than 9 bytes"):
        read_bounded(tmp_path / "t.json", 9)
    with pytest.raises(ValueError, match="a device or a pipe"):
        read_bounded(Path("/dev/zero"), 10)
    monkeypatch.setattr(tables, "LARGEST_BYTES", 9)
    with pytest.raises(TableError, match="longer than 9 bytes"):
        read_table(tmp_path / "t.json")


def test_a_target_cannot_name_a_file_elsewhere() -> None:
    assert Target(optimisation="all+tf32").slug() == "onnxruntime-fp32-b1-t1-all+tf32"
    slug = Target(runtime="../../x", optimisation="a/b\\c\n" + "y" * 500).slug()
    assert re.fullmatch(r"\.\.-\.\.-x-fp32-b1-t1-a-b-c-y+", slug)
    assert len(slug) == 100


def test_checks_that_are_none_are_forgotten() -> None:
    check = Check(1.0, {"0": 0.0}, 3, 0.01, 0.05, None)
    broken = replace(table(), provenance={"checks": 3})
    assert [one["networks"] for one in reanchored(broken, check).provenance["checks"]] == [3]


@pytest.mark.parametrize("changed", [{"results": 3}, {"results": [3]}, {"anchors": [1]}, {"anchor_ms": []}])
def test_a_recorded_group_is_as_strict_as_an_answer(changed: dict[str, Any]) -> None:
    assert len(read_recorded(json.loads(json.dumps(GROUP))).results) == 2
    with pytest.raises(Nonsense):
        read_recorded({**GROUP, **changed})


def trial(values: Any, **attributes: Any) -> Any:
    return SimpleNamespace(values=values, user_attrs=attributes, number=3)


def study_of(*trials: Any) -> Any:
    return SimpleNamespace(study_name="s", directions=[1, 2], get_trials=lambda **_: list(trials))


@pytest.mark.parametrize("values", [None, [1.0], [1.0, float("nan")], [1.0, float("inf")], [1.0, "2"], [1.0, 10**400]])
def test_trials_without_values_are_said(values: Any) -> None:
    assert list(recorded(study_of(trial([1.0, 2.0], **{ARCH: "0-1"})))) == [(0, 1)]
    with pytest.raises(RunError, match="trial 3 of study 's' has values"):
        recorded(study_of(trial(values, **{ARCH: "0-1"})))


def test_failures_without_a_network_are_passed_over() -> None:
    assert failed(study_of(trial(None, reason="diverged"))) == {}


OPERATIONS = (
    '{"op_code":9}',
    '{"op_code":2,"study_id":0,"worker_id":"w","user_attr":[]}',
    '{"op_code":0}',
    '{"op_code":4,"trial_id":7,"worker_id":"w"}',
)


@pytest.mark.parametrize("line", [*OPERATIONS, "[]", DEEP])
def test_a_journal_of_trials_that_optuna_cannot_replay(line: str, tmp_path: Path) -> None:
    open_study(tmp_path / "journal.log", "s", OBJECTIVES)
    good = (tmp_path / "journal.log").read_text()
    (tmp_path / "journal.log").write_text(f"{good}{line}\n{good.splitlines()[0]}\n")
    with pytest.raises(RunError, match=r"journal\.log is not an intact Optuna journal"):
        open_study(tmp_path / "journal.log", "s", OBJECTIVES)


@pytest.mark.parametrize("obeyed", ["\x1b[31m", "\x00", "\x7f", "\x9b", "\u202e", "\ud800"])
def test_what_would_be_obeyed_is_not_shown(obeyed: str) -> None:
    network = replace(SUMMARY.networks[0], name=f"net{obeyed}", refused=f"no{obeyed}", measured_ms=None)
    assert obeyed not in shown(front_table(replace(SUMMARY, networks=(network,))))
    page = tag("p", f"a{obeyed}b", title=f"c{obeyed}") + join([obeyed])
    assert page == '<p title="c\ufffd{0}">a\ufffd{0}b</p>\ufffd{0}'.format(obeyed[1:])
