"""`hwnas transfer` as a user runs it: asked for times, given them, searched with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
from typer.testing import CliRunner

from hwnas.cli import app
from hwprof.table import read_table

RECIPE = """
name = "phone"
[target]
device = "phone"
runtime = "app"
[space]
name = "nasbench201"
num_classes = 10
in_channels = 1
channels = 4
cells = 1
resolution = 8
[search]
score = "macs"
evaluations = 12
trainings = 1
[train]
epochs = 1
"""


def hwnas(folder: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hwnas", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_device_is_asked_about_and_then_searched_for(tmp_path: Path) -> None:
    (tmp_path / "phone.toml").write_text(RECIPE)
    transfer = ("transfer", "phone.toml", "-o", "phone", "--shots")
    asked = json.loads(hwnas(tmp_path, *transfer, "8", "--json"))
    assert (asked["networks"], asked["measured"], asked["table"], asked["sources"]) == (8, 0, None, [])
    times = tmp_path / "phone" / "times.csv"
    lines = times.read_text().splitlines()
    assert all((tmp_path / "phone" / line.split(",")[1]).exists() for line in lines[1:])
    assert "write the milliseconds of each into phone/times.csv" in " ".join(hwnas(tmp_path, *transfer, "8").split())
    times.write_text("\n".join([lines[0], *(f"{line}{number + 2}.5" for number, line in enumerate(lines[1:]))]))
    done = json.loads(hwnas(tmp_path, *transfer, "8", "--json"))
    assert done["measured"] == 8
    assert done["half_width"] > 0
    table = read_table(tmp_path / "phone" / "table.json")
    assert [model.ms for model in table.models] == [number + 2.5 for number in range(8)]
    assert table.target.device == "phone"

    more = json.loads(hwnas(tmp_path, *transfer, "10", "--json"))
    assert (more["networks"], more["measured"]) == (10, 8)
    assert times.read_text().splitlines()[1].endswith(",2.5")

    (tmp_path / "search.toml").write_text(RECIPE + '[profile]\ntable = "phone/table.json"\n')
    summary = json.loads(hwnas(tmp_path, "run", "search.toml", "--json"))
    (network,) = summary["networks"]
    assert network["predicted_low_ms"] < network["predicted_ms"] < network["predicted_high_ms"]
    assert network["measured_ms"] is None
    assert "phone" in network["refused"]

    times.write_text(times.read_text().replace(",2.5", ",-1"))
    assert "line 2: -1 ms" in hwnas(tmp_path, *transfer, "10", code=1)


def test_of_several_precisions_each_is_asked_for_and_predicted(tmp_path: Path) -> None:
    recipe, folder = tmp_path / "phone.toml", tmp_path / "phone"
    recipe.write_text(RECIPE.replace('runtime = "app"', 'runtime = "app"\nprecision = ["int8", "fp32"]'))
    command = ["transfer", str(recipe), "-o", str(folder), "--shots", "2"]
    asked = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [(one["precision"], one["networks"], one["measured"]) for one in asked] == [("fp32", 2, 0), ("int8", 2, 0)]
    for number, precision in enumerate(("fp32", "int8")):
        times = folder / precision / "times.csv"
        head, *lines = times.read_text().splitlines()
        kinds = {node.op_type for node in onnx.load(times.parent / lines[0].split(",")[1]).graph.node}
        assert ("QuantizeLinear" in kinds) == (precision == "int8")
        times.write_text("\n".join([head, *(f"{line}{2.5 - number}" for line in lines)]))
        said = CliRunner().invoke(app, command).stdout
        tables = [str(folder / each / "table.json") for each in ("int8", "fp32")]  # as the recipe has them
        assert (f"[profile] table = {json.dumps(tables)}" in said) == (precision == "int8"), "once all are there"
        assert f"Transfer, {precision}" in said
    for precision, ms in (("fp32", 2.5), ("int8", 1.5)):
        table = read_table(folder / precision / "table.json")
        assert table.target.precision == precision
        assert [model.ms for model in table.models] == [ms, ms]
