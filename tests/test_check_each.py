"""`hwnas profile --check` and `hwnas validate` look at the table of each precision of a recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from toy_runs import recipe_text, table_path
from typer.testing import CliRunner

from hwnas.cli import app
from hwnas.latency.check import Check
from hwnas.run import Run
from hwprof.table import read_table, write_table
from hwprof.target import Target


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe in two precisions, with made-up tables named by them."""
    table = read_table(Path(table_path(tmp_path, "nasbench201")))
    paths = {precision: (tmp_path / f"{precision}.json").as_posix() for precision in ("int8", "fp32")}
    for precision, path in paths.items():
        write_table(replace(table, target=Target(precision=precision)), Path(path))
    own = f'table = "{table_path(tmp_path, "nasbench201")}"'
    text = recipe_text(tmp_path, "TPESampler").replace(own, f"table = {json.dumps(list(paths.values()))}")
    (tmp_path / "both.toml").write_text(f'{text}[target]\nprecision = ["int8", "fp32"]\n')
    return tmp_path / "both.toml"


def test_each_table_is_checked_and_one_that_does_not_hold_is_an_error(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(run: Run) -> Check:
        reason = "it is slower" if run.target.precision == "int8" and broken else None
        return Check(1.0, {"a": 0.0}, 3, 0.01, 0.02, reason)

    monkeypatch.setattr("hwnas.pipeline.check_stage", check)
    for broken in (False, True):
        done = CliRunner().invoke(app, ["profile", "--check", str(recipe), "--json"])
        values = json.loads(done.stdout)
        assert [(Path(one["path"]).name, one["holds"]) for one in values] == [
            ("fp32.json", True), ("int8.json", not broken),
        ]  # fmt: skip
        assert done.exit_code == int(broken)
        said = CliRunner().invoke(app, ["profile", "--check", str(recipe)]).stdout
        assert said.count("the table holds and is on today's scale now") == 2 - broken
        assert said.count("does not hold any more: it is slower") == int(broken)


def test_one_table_is_not_validated_for_two_precisions(recipe: Path) -> None:
    done = CliRunner().invoke(app, ["validate", str(recipe), "--table", "x.json"])
    assert done.exit_code == 1
    assert "--table names one table, and target.precision has fp32, int8" in str(done.exception)
