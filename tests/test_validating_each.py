"""Of several precisions, the table of each is validated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_runs import recipe_text, table_path, toy_run

from hwnas.errors import RecipeError
from hwnas.latency.unseen_session import ValidateConfig
from hwnas.run import Run
from hwnas.validating import validate_each
from hwprof.table import LatencyTable, read_table, write_table
from hwprof.target import Target


def run_in(folder: Path, *precisions: str) -> Run:
    table = read_table(Path(table_path(folder, "nasbench201")))
    paths = []
    for precision in precisions:
        paths.append((folder / f"{precision}.json").as_posix())
        write_table(LatencyTable(**{**vars(table), "target": Target(precision=precision)}), Path(paths[-1]))
    own = f'table = "{table_path(folder, "nasbench201")}"'
    text = recipe_text(folder, "TPESampler").replace(own, f"table = {paths}".replace("'", '"'))
    return toy_run(f"{text}[target]\nprecision = {list(precisions)}\n")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Path]]:
    """What was validated: the table's precision, its path, the folder of the result."""
    asked: list[tuple[str, str, Path]] = []

    def validate(
        space: Any, table: LatencyTable, predictor: Any, device: Any, folder: Path, *_: Any, **more: Any
    ) -> str:
        asked.append((table.target.precision, more["source"], folder))
        return f"of {table.target.precision}"

    monkeypatch.setattr("hwnas.validating.validate", validate)
    return asked


def test_each_table_is_validated_in_its_folder(tmp_path: Path, asked: list[tuple[str, str, Path]]) -> None:
    run = run_in(tmp_path, "int8", "fp32")
    paths = {precision: (tmp_path / f"{precision}.json").as_posix() for precision in run.precisions}
    found = list(validate_each(run, ValidateConfig(3), tmp_path / "out"))
    assert found == [(each, f"of {each}", tmp_path / "out" / each) for each in ("fp32", "int8")]
    assert asked == [(each, paths[each], tmp_path / "out" / each) for each in ("fp32", "int8")]
    folders = [folder for *_, folder in validate_each(run, ValidateConfig(3))]
    assert folders == [tmp_path / "fp32-validation", tmp_path / "int8-validation"], "beside their tables"
    with pytest.raises(RecipeError, match=r"--table names one table, and target.precision has fp32, int8"):
        list(validate_each(run, ValidateConfig(3), None, tmp_path / "fp32.json"))


def test_of_one_precision_nothing_changes(tmp_path: Path, asked: list[tuple[str, str, Path]]) -> None:
    run = run_in(tmp_path, "fp32")
    other = tmp_path / "other.json"
    other.write_bytes((tmp_path / "fp32.json").read_bytes())
    ((precision, _, folder),) = validate_each(run, ValidateConfig(3), tmp_path / "out", other)
    assert (precision, folder, asked) == ("fp32", tmp_path / "out", [("fp32", str(other), tmp_path / "out")])
