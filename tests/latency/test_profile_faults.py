"""A profile that is disturbed: killed agents, full disks, an upgraded runtime, a second profile of the same table."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from hwnas.cli import app
from hwnas.errors import HwnasError
from hwnas.latency.selection import SweepConfig
from hwnas.latency.sweep import profile
from hwnas.recipe import parse_recipe
from hwnas.run import Run
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwprof.client import AgentClient
from hwprof.devices.local import LocalDevice
from hwprof.errors import BusyError, HwprofError, TableError
from hwprof.journal import Journal
from hwprof.table import LatencyTable, read_table, write_table
from hwprof.target import Plan, Target

ARGUMENTS: dict[str, Any] = {
    "resolutions": (16,),
    "num_classes": 10,
    "in_channels": 1,
    "stem_width": 8,
    "stage_widths": (8, 16),
    "stage_strides": (2, 2),
    "se": (False, True),
    "activations": ("relu", "hardswish"),
    "depths": (1, 2),
    "kernels": (3,),
    "expands": (2, 3),
    "head_widths": (32, 32),
}
SPACE = MobileNetV3Space(**ARGUMENTS)
PLAN = Plan(sweeps=3, max_sweeps=3, max_runs=3, visit_ms=0.5, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)
CONFIG = SweepConfig(fit=4, held_out=3, searched=0, group=3, plan=PLAN)
RECIPE = """
name = "upgraded"
[data]
source = "digits"
[space]
name = "mobilenetv3"
resolutions = [16]
stem_width = 8
stage_widths = [8, 16]
stage_strides = [2, 2]
se = [false, true]
activations = ["relu", "hardswish"]
depths = [1, 2]
kernels = [3]
expands = [2, 3]
head_widths = [32, 32]
[profile]
"""


def run(folder: Path, device: LocalDevice | None = None) -> LatencyTable:
    return profile(SPACE, Target(), {"local": device or LocalDevice()}, folder / "table.json", CONFIG)


def shape(table: LatencyTable) -> Any:
    """All of a table that does not vary from measurement to measurement."""
    return (
        {key: (row.origin, row.count) for key, row in table.rows.items()},
        [(model.name, model.role, model.again_ms is None) for model in table.models],
        (table.target, table.fingerprint, table.provenance["space"], table.provenance["profiled_networks"]),
    )


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> LatencyTable:
    """The table of a profile that nothing disturbed."""
    return run(tmp_path_factory.mktemp("quiet"))


@dataclass
class MortalDevice(LocalDevice):
    """This machine, whose agents are killed a while after they started, up to `lives` of them.

    The first while it starts, which no machine is too fast for; the others at random, some when they are done already.
    """

    seed: int
    lives: int
    killed: list[subprocess.Popen[str]] = field(default_factory=list)
    timers: list[threading.Timer] = field(default_factory=list)

    def start_agent(self) -> subprocess.Popen[str]:
        process = super().start_agent()
        if len(self.killed) < self.lives:
            self.killed.append(process)
            delay = random.Random(100 * self.seed + len(self.killed)).uniform(0.1, 1.2) if self.killed[1:] else 0.03
            timer = threading.Timer(delay, process.kill)
            self.timers.append(timer)
            timer.start()
        return process


@pytest.mark.parametrize("seed", range(3))
def test_agents_killed_at_any_moment_cost_a_group_each_and_change_nothing(
    tmp_path: Path, quiet: LatencyTable, seed: int
) -> None:
    device = MortalDevice(seed, lives=4)
    table, kept = None, 0
    for _ in range(6):
        try:
            table = run(tmp_path, device)
            break
        except HwprofError as error:
            said, journal = str(error), tmp_path / "table.journal"
        assert "the agent on local ended (exit code -9)" in said
        lines = len(journal.read_bytes().splitlines()) if journal.exists() else 0
        assert lines >= kept, "what was measured is never lost"
        kept = lines
    assert table is not None
    for timer in device.timers:
        timer.join()
    assert -9 in [process.wait(5) for process in device.killed], "none was killed while it worked"
    assert shape(table) == shape(quiet)
    assert read_table(tmp_path / "table.json").rows.keys() == table.rows.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def nth(number: int, real: Callable[..., Any], fails: Callable[..., Any]) -> Callable[..., Any]:
    """A function that fails from its `number`-th call on."""
    calls = iter(range(1, 10**9))
    return lambda *arguments, **options: (fails if next(calls) >= number else real)(*arguments, **options)


@pytest.mark.parametrize("number", [2, 9])
def test_a_disk_too_full_for_a_graph_loses_nothing(
    tmp_path: Path, quiet: LatencyTable, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def half(model: Any, path: Any) -> None:
        Path(path).write_bytes(model.SerializeToString()[:100])
        full()

    with monkeypatch.context() as patch:
        patch.setattr(onnx, "save", nth(number, onnx.save, half))
        with pytest.raises(OSError, match="No space left on device"):
            run(tmp_path)
    assert not (tmp_path / "table.json").exists()
    assert shape(run(tmp_path)) == shape(quiet)


def test_a_disk_too_full_for_the_table_keeps_every_measurement(
    tmp_path: Path, quiet: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hwprof.files.os.fsync", lambda descriptor: None)
        patch.setattr("hwprof.files.Path.replace", full)
        with pytest.raises(OSError, match="No space left on device"):
            run(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["table.journal"]
    monkeypatch.setattr(AgentClient, "measure", full)  # nothing is left to measure
    assert shape(run(tmp_path)) == shape(quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


@contextmanager
def other_profile(path: Path) -> Iterator[int]:
    """Another process that has the journal of the table at `path` open."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom hwprof.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), {})\nprint('open', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(path.with_suffix(".journal"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process.pid
        process.kill()


def test_two_profiles_of_one_table_do_not_mix(tmp_path: Path) -> None:
    with other_profile(tmp_path / "table.json") as process_id:
        before = (tmp_path / "table.journal").read_bytes()
        with pytest.raises(BusyError, match=rf"process {process_id} on .*since.*it is measuring the same table"):
            run(tmp_path)
        assert (tmp_path / "table.journal").read_bytes() == before


# A runtime that was upgraded under a table


OLD, NEW = "1.0.0", "9.9.9"


@pytest.fixture
def upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: LatencyTable) -> Path:
    """A folder with a recipe and its table, measured with the OLD runtime on a machine that now has the NEW one."""
    monkeypatch.chdir(tmp_path)
    real = AgentClient.fingerprint
    assert isinstance(real, property)
    assert real.fget is not None
    get = real.fget
    monkeypatch.setattr(AgentClient, "fingerprint", property(lambda client: {**get(client), "onnxruntime": NEW}))
    (tmp_path / "upgraded.toml").write_text(RECIPE)
    recipe = Run(parse_recipe(RECIPE), RECIPE)
    write_table(replace(quiet, fingerprint={**quiet.fingerprint, "onnxruntime": OLD}), recipe.table_path)
    return recipe.table_path


def message(*arguments: str) -> str:
    """The error that a command ends with."""
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, (HwnasError, HwprofError)), result.output
    return str(result.exception)


@pytest.mark.parametrize("command", [["profile"], ["profile", "--check"], ["validate"]])
def test_commands_that_measure_beside_the_table_name_both_versions_and_the_next_step(
    upgraded: Path, command: list[str]
) -> None:
    before = upgraded.read_bytes()
    said = message(*command, "upgraded.toml")
    assert f"onnxruntime is '{OLD}' in the table, '{NEW}' wanted" in said
    assert "hwnas profile --fresh RECIPE" in said
    assert upgraded.read_bytes() == before
    assert list(upgraded.parent.glob("*.journal")) == []


def test_fresh_measures_the_new_runtime_and_keeps_the_old_table_aside(
    upgraded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = upgraded.read_bytes()

    def measured(space: Any, target: Target, device: Any, path: Path, config: Any, *, progress: Any) -> LatencyTable:
        return profile(space, target, device, path, replace(CONFIG, seed=config.seed), progress=progress)

    monkeypatch.setattr("hwnas.pipeline.profile", measured)
    result = CliRunner().invoke(app, ["profile", "upgraded.toml", "--fresh", "--json"])
    assert result.exception is None, result.output
    assert read_table(upgraded).fingerprint["onnxruntime"] == NEW
    assert upgraded.with_name(f"{upgraded.name}.1").read_bytes() == before


def test_an_unfinished_profile_is_not_continued_with_another_runtime(upgraded: Path) -> None:
    upgraded.unlink()
    recipe = Run(parse_recipe(RECIPE), RECIPE)
    old = {**recipe.fingerprint, "onnxruntime": OLD}
    section = recipe.recipe.profile
    Journal(upgraded.with_suffix(".journal"), {"fingerprint": old, "space": section.networks}).close()
    said = message("profile", "upgraded.toml")
    assert f"fingerprint.onnxruntime was '{OLD}', is '{NEW}'" in said
    assert "delete it to measure anew" in said


def test_a_search_needs_the_table_alone(upgraded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that the recipe names predicts, whatever the runtime here, and even with no device at all."""
    text = RECIPE.replace("[profile]", f'[profile]\ntable = "{upgraded.as_posix()}"')

    def no_device(*_: Any) -> None:
        raise AssertionError("a search asked for the device")

    monkeypatch.setattr(AgentClient, "restart", no_device)
    recipe = Run(parse_recipe(text), text)
    assert (recipe.predictor.predict_ms(SPACE.sample(5, np.random.default_rng(0))) > 0).all()


def test_measuring_exported_files_beside_the_table_is_refused(upgraded: Path, tmp_path: Path) -> None:
    from hwnas.latency.measure import measure_files

    with pytest.raises(
        TableError, match=rf"onnxruntime is '{OLD}' in the table, '{NEW}' wanted.*hwnas profile --fresh"
    ):
        measure_files({"file": tmp_path / "file.onnx"}, SPACE, read_table(upgraded), LocalDevice(), plan=PLAN)


def test_what_the_journal_holds_is_plain_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No NaN in it, which other tools would not read."""
    kept: list[str] = []
    real = Journal.delete
    monkeypatch.setattr(Journal, "delete", lambda journal: (kept.append(journal.path.read_text()), real(journal)))
    run(tmp_path)
    for line in kept[0].splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the journal"))
