"""Networks measured before training, on a device of a test's making."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwnas import confirm
from hwnas.confirm import HOPELESS, above_limit
from hwnas.errors import InfeasibleError, RunError
from hwnas.latency.fastest import FastestPredictor
from hwnas.latency.measure import Measured
from hwnas.space import format_arch, rows_of, unique_archs
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.errors import DeviceError
from hwprof.target import Target

SPACE = NasBench201Space(channels=4, cells=1, resolution=8)
ARCHS = [SPACE.check((0, 0, 0, op, 0, 0)) for op in (1, 2, 3, 4)] + [
    SPACE.check((3, 3, 3, 3, 3, op)) for op in range(1, 5)
]


class World:
    """What networks take here; `calls` are those measured, in order."""

    def __init__(self, ms: Mapping[Any, float], refused: tuple[Any, ...] = (), dead: bool = False) -> None:
        self.ms, self.refused, self.dead = ms, refused, dead
        self.calls: list[list[Any]] = []

    def measure_files(self, files: Mapping[str, Path], *_: Any, plan: Any, progress: Any) -> dict[str, Measured]:
        if self.dead:
            raise DeviceError("the device is gone")
        assert all(path.exists() for path in files.values())
        self.calls.append([tuple(map(int, name.split("-"))) for name in files])
        found = {}
        for arch in self.calls[-1]:
            reason = "busy" if arch in self.refused else None
            found[format_arch(arch)] = Measured("", self.ms[arch], 0, 0, 0, 0, reason)
        return found


def run_in(folder: Path, limit: float | None = 1.0, table: str | None = None) -> Any:
    return SimpleNamespace(
        folder=folder,
        space=SPACE,
        table=None,
        device=None,
        plan=None,
        target=Target(),
        predictor=None,
        progress=lambda *_: None,
        network_name=lambda arch: "net-" + format_arch(arch),
        recipe=SimpleNamespace(search=SimpleNamespace(latency=limit), profile=SimpleNamespace(table=table)),
    )


def test_who_is_above_the_limit_is_found_and_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(dict(zip(ARCHS, (1.1, 0.9, 1.2, 0.5, 1, 1, 1, 1), strict=True)))
    monkeypatch.setattr(confirm, "measure_files", world.measure_files)
    assert above_limit(run_in(tmp_path), ARCHS[:2]) == {ARCHS[0]: 1.1}
    assert above_limit(run_in(tmp_path), ARCHS[:4]) == {ARCHS[0]: 1.1, ARCHS[2]: 1.2}
    assert world.calls == [ARCHS[:2], ARCHS[2:4]]
    assert json.loads((tmp_path / "confirmed.json").read_text())[format_arch(ARCHS[0])] == 1.1
    # Again, as after a kill: the same, nothing measured anew.
    assert above_limit(run_in(tmp_path), ARCHS[:4]) == {ARCHS[0]: 1.1, ARCHS[2]: 1.2}
    assert len(world.calls) == 2


def test_of_several_precisions_each_is_measured_in_its_fastest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, tables = World({ARCHS[0]: 1.5, ARCHS[1]: 0.5, ARCHS[2]: 2.5}), []

    def measure_files(files: Mapping[str, Path], space: Any, table: Any, device: Any, **options: Any) -> Any:
        tables.append((table, sorted(files)))
        return world.measure_files(files, space, table, device, **options)

    monkeypatch.setattr(confirm, "measure_files", measure_files)
    predictor = FastestPredictor.__new__(FastestPredictor)
    monkeypatch.setattr(predictor, "fastest", lambda archs: [1, 0, 1], raising=False)
    run, parts = run_in(tmp_path), {precision: run_in(tmp_path) for precision in ("fp32", "int8")}
    for precision, part in parts.items():
        part.table, part.target = precision, Target(precision=precision)
    run.predictor, run.precisions, run.at = predictor, tuple(parts), parts.get
    assert above_limit(run, ARCHS[:3]) == {ARCHS[0]: 1.5, ARCHS[2]: 2.5}
    names = [format_arch(arch) for arch in ARCHS[:3]]
    assert tables == [("fp32", names[1:2]), ("int8", sorted([names[0], names[2]]))]


def test_refused_and_absent_measurements_leave_the_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(dict.fromkeys(ARCHS, 2.0), refused=tuple(ARCHS))
    monkeypatch.setattr(confirm, "measure_files", world.measure_files)
    assert above_limit(run_in(tmp_path), ARCHS) == {}
    world = World({}, dead=True)
    monkeypatch.setattr(confirm, "measure_files", world.measure_files)
    assert above_limit(run_in(tmp_path / "other"), ARCHS) == {}


def test_without_a_limit_or_a_device_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirm, "measure_files", None)
    assert above_limit(run_in(tmp_path, limit=None), ARCHS) == {}
    assert above_limit(run_in(tmp_path, table="elsewhere.json"), ARCHS) == {}


def test_predictions_that_never_hold_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archs = rows_of(unique_archs(SPACE.sample(4 * HOPELESS, np.random.default_rng(0))))[:HOPELESS]
    world = World(dict.fromkeys(archs, 1.5))
    monkeypatch.setattr(confirm, "measure_files", world.measure_files)
    assert len(above_limit(run_in(tmp_path), archs[:-1])) == HOPELESS - 1
    with pytest.raises(InfeasibleError, match=r"all 25 networks were measured above the limit of 1 ms .*took 1.5 ms"):
        above_limit(run_in(tmp_path), archs)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "confirmed.json").write_text("{")
    with pytest.raises(RunError, match=r"confirmed\.json cannot be used: .*; delete it, its networks"):
        above_limit(run_in(tmp_path), ARCHS)
