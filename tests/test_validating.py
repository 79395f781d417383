"""`hwnas validate` as a user runs it: a toy table is measured once, then validated in earnest."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwnas import validating
from hwnas.cli import app
from hwnas.errors import RecipeError
from hwnas.report.validation import write_validation_html
from hwnas.validating import failure, parse_fraction
from hwnas.validation import TableValidation
from hwprof.table import read_table, write_table

RECIPE = """
name = "toy"
[data]
source = "digits"
[space]
name = "mobilenetv3"
resolutions = [16, 20]
depths = [1, 2]
kernels = [3, 5]
expands = [2, 3]
stem_width = 16
stem_stride = 1
stage_widths = [16, 24]
stage_strides = [2, 2]
se = [false, true]
activations = ["relu", "hardswish"]
head_widths = [64, 64]
[profile]
networks = 4
fit = 8
held_out = 9
searched = 0
"""
runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, the table of this machine, and a finished validation."""
    path = tmp_path_factory.mktemp("validate")
    (path / "toy.toml").write_text(RECIPE)
    before = Path.cwd()
    os.chdir(path)
    try:
        profiled = runner.invoke(app, ["profile", "toy.toml", "--json"])
        assert profiled.exit_code == 0, profiled.output
        validated = runner.invoke(app, ["validate", "toy.toml", "--networks", "6", "--seed", "3", "-o", "out"])
        assert validated.exit_code == 0, validated.output
    finally:
        os.chdir(before)
    (path / "said.txt").write_text(validated.stdout)
    return path


def result_of(folder: Path) -> TableValidation:
    return TableValidation.from_json((folder / "out" / "validation.json").read_text())


def test_files_and_words_say_the_same(folder: Path) -> None:
    result, said = result_of(folder), " ".join((folder / "said.txt").read_text().split())
    assert (len(result.networks), result.seed) == (6, 3)
    assert result.verdict in said
    assert str(Path("out") / "validation.html") in said
    assert Path(result.table).name in (folder / "out" / "validation.html").read_text(encoding="utf-8")
    assert result.promise is not None
    assert result.interval is not None
    # Nine held-out networks are enough for the interval, and too few for the upper bound.
    assert (result.interval.calibrated, result.upper) == (9, None)
    assert any("no 95% upper bound" in note for note in result.notes)
    assert "note: no 95% upper bound" in said
    assert not (folder / "out" / "validation.journal").exists()


def test_the_default_folder_is_beside_the_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: --json prints what is saved, --table is used, and a limit that is kept is exit code 0."""
    monkeypatch.chdir(folder)
    (path,) = (folder / "latency_tables").rglob("*.json")
    moved = folder / "moved.json"
    moved.write_bytes(path.read_bytes())
    arguments = ["validate", "toy.toml", "--networks", "3", "--no-session-repeat", "--table", "moved.json", "--json"]
    done = runner.invoke(app, [*arguments, "--max-error", "100%"])
    assert done.exit_code == 0, done.output
    printed = TableValidation.from_json(done.stdout)
    assert printed == TableValidation.from_json((folder / "moved-validation" / "validation.json").read_text())
    assert printed.table == "moved.json"
    assert all(network.again_ms is None for network in printed.networks)


def test_an_error_above_the_limit_is_exit_code_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = runner.invoke(app, ["validate", "toy.toml", "--networks", "3", "--no-session-repeat", "--max-error", "0%"])
    assert done.exit_code == 1
    assert "is above --max-error 0.0%" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": {"cpu": "another"}}, "the latency table is of another target"),
        ({"models": ()}, "no anchors"),
        ({"rows": {}}, "has no row for"),
    ],
)
def test_tables_that_cannot_be_validated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: dict, message: str
) -> None:
    monkeypatch.chdir(folder)
    (path,) = (folder / "latency_tables").rglob("onnxruntime*.json")
    write_table(replace(read_table(path), **change), folder / "bad.json")
    done = runner.invoke(app, ["validate", "toy.toml", "--networks", "3", "--table", "bad.json"])
    assert done.exit_code == 1
    assert message in str(done.exception)


def test_wrong_options_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert runner.invoke(app, ["validate", "toy.toml", "--networks", "0"]).exit_code == 2
    missing = runner.invoke(app, ["validate", "toy.toml", "--table", "missing.json"])
    assert "no latency table at missing.json" in str(missing.exception)
    done = runner.invoke(app, ["validate", "toy.toml", "--max-error", "five"])
    assert "--max-error is a share of the latency" in str(done.exception)


@pytest.mark.parametrize(
    ("text", "value"), [("5%", 0.05), (" 2.5 % ", 0.025), ("0.05", 0.05), ("0%", 0.0), (".1", 0.1)]
)
def test_fractions(text: str, value: float) -> None:
    assert parse_fraction(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "5", "five", "-5%", "150%", "1e-2", "nan", "5 percent", "%"])
def test_wrong_fractions(text: str) -> None:
    with pytest.raises(RecipeError, match="--max-error"):
        parse_fraction(text)


def test_what_makes_the_command_fail(folder: Path) -> None:
    result = result_of(folder)
    assert result.agreement is not None
    poor = replace(result, agreement=replace(result.agreement, mean_error=0.3))
    assert failure(poor, None) is None  # a poor table is a result
    assert failure(poor, 0.3) is None
    assert "30.0% is above --max-error 5.0%" in str(failure(poor, 0.05))
    assert failure(replace(result, agreement=None, notes=("6 not measured: busy",)), None) == (
        "no network was measured: 6 not measured: busy"
    )


def test_a_page_that_cannot_be_written_keeps_the_measurements(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arguments = ["validate", "toy.toml", "--networks", "3", "--no-session-repeat", "-o", "full"]

    def full_disk(result: TableValidation, path: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(validating, "write_validation_html", full_disk)
    assert "no space left" in str(runner.invoke(app, arguments).exception)
    journal = (folder / "full" / "validation.journal").read_text()
    assert json.loads(journal.splitlines()[1])["phase"] == "unseen networks"
    monkeypatch.setattr(validating, "write_validation_html", write_validation_html)
    assert runner.invoke(app, arguments).exit_code == 0
    saved = {one["name"]: one["ms"] for one in json.loads(journal.splitlines()[1])["measured"]}
    result = TableValidation.from_json((folder / "full" / "validation.json").read_text())
    assert {network.arch: network.measured_ms for network in result.measured}.items() <= saved.items()
    assert (folder / "full" / "validation.html").exists()
