from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import PredictorError
from hwnas.graphs import write_arch
from hwnas.latency import measure as measure_module
from hwnas.latency.measure import anchor_scale, measure_files
from hwnas.space import format_arch
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwprof.client import AgentClient, Group, Result
from hwprof.devices.local import LocalDevice
from hwprof.errors import MeasurementError, TableError
from hwprof.table import LatencyTable, Model, Row
from hwprof.target import Plan, Target

PLAN = Plan(sweeps=3, max_sweeps=3, max_runs=3, visit_ms=0.5, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)
ANCHOR_MS = (1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def space() -> MobileNetV3Space:
    return MobileNetV3Space(
        resolutions=(16,),
        num_classes=10,
        in_channels=1,
        stem_width=8,
        stage_widths=(8,),
        stage_strides=(2,),
        se=(False,),
        activations=("relu",),
        depths=(1, 2),
        kernels=(3,),
        expands=(2, 3),
        head_widths=(32, 32),
    )


@pytest.fixture(scope="module")
def table(space: MobileNetV3Space) -> LatencyTable:
    """A table of this machine whose anchors are said to take 1, 2 and 4 ms: their scale is 2 ms."""
    with AgentClient(LocalDevice(), Target()) as client:
        fingerprint = client.fingerprint
    archs = space.sample(20, np.random.default_rng(0))
    names = list(dict.fromkeys(format_arch(arch) for arch in archs))[:3]
    anchors = tuple(Model(name, "anchor", ms, 0.0) for name, ms in zip(names, ANCHOR_MS, strict=True))
    return LatencyTable(Target(), fingerprint, {}, 0.0, anchors, None, {"row": Row(1.0, 0.0, 1)})


@pytest.fixture(scope="module")
def files(space: MobileNetV3Space, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    archs = {"one": (0,) * len(space.slots), "two": tuple(len(slot.options) - 1 for slot in space.slots)}
    return {name: write_arch(space, arch, Target(), folder / name) for name, arch in archs.items()}


class FakeClient:
    """An agent whose anchors take `anchor_ms`, and whose models 1.5 times their mean; `reasons` are of each call."""

    reasons: Iterator[str | None] = iter(())
    anchor_ms: tuple[float, ...] = ANCHOR_MS
    standard_error: float = 0.01
    calls: list[tuple[str, ...]]

    def __init__(self, *_: Any) -> None:
        FakeClient.calls = []

    def __enter__(self) -> FakeClient:
        return self

    def patiently(self, job: Any) -> Any:
        return job()

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def fingerprint(self) -> dict[str, str]:
        return FAKE_FINGERPRINT

    def measure(self, models: dict, anchors: dict, plan: Plan, *, seed: int) -> Group:
        FakeClient.calls.append(tuple(models))
        assert len(anchors) == 3
        assert all(path.exists() for path in anchors.values())
        results = tuple(
            Result(name, 1.5, self.standard_error, 0.0, (1.5,), 3.3, 0.0, next(self.reasons, None), None)
            for name in models
        )
        times = {name: (ms, ms, ms) for name, ms in zip(anchors, self.anchor_ms, strict=True)}
        return Group(results, (2.0,), times, 0.0, 0.1, 0.0, 0, {})


FAKE_FINGERPRINT = {"cpu": "fake"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, table: LatencyTable) -> LatencyTable:
    """The table, and a fake agent on its machine."""
    monkeypatch.setattr(measure_module, "AgentClient", FakeClient)
    monkeypatch.setattr(FakeClient, "reasons", iter(()))
    return replace(table, fingerprint=FAKE_FINGERPRINT)


def test_files_are_measured_beside_the_anchors(
    space: MobileNetV3Space, table: LatencyTable, files: dict[str, Path]
) -> None:
    done: list[tuple[int, int]] = []
    measured = measure_files(
        files, space, table, LocalDevice(), plan=PLAN, progress=lambda *counts: done.append(counts)
    )
    assert measured.keys() == files.keys()
    for name, result in measured.items():
        assert result.name == name
        assert 0 <= result.low_ms <= result.ms <= result.high_ms
        assert result.refused is None
        assert result.wall_ms > 0
        # The anchors really take some 0.02 ms, not the milliseconds that the table says.
        assert -1 < result.anchor_drift < -0.5
    assert done[0] == (0, 2)
    assert done[-1] == (2, 2)


def test_ratios_become_milliseconds_of_the_table(space: MobileNetV3Space, fake: LatencyTable) -> None:
    result = measure_files({"m": Path("m")}, space, fake, LocalDevice())["m"]
    assert result.ms == pytest.approx(1.5 * 2.0)
    assert (result.low_ms, result.high_ms) == pytest.approx((3.0 * (1 - 0.0196), 3.0 * (1 + 0.0196)))
    assert (result.wall_ms, result.anchor_drift) == (3.3, pytest.approx(0.0))


@pytest.mark.parametrize(("factor", "drift"), [(1.1, 0.1), (0.5, -0.5)])
def test_the_drift_of_the_anchors_is_told(
    space: MobileNetV3Space, fake: LatencyTable, monkeypatch: pytest.MonkeyPatch, factor: float, drift: float
) -> None:
    monkeypatch.setattr(FakeClient, "anchor_ms", tuple(factor * ms for ms in ANCHOR_MS))
    result = measure_files({"m": Path("m")}, space, fake, LocalDevice())["m"]
    assert result.anchor_drift == pytest.approx(drift)
    assert result.ms == pytest.approx(3.0)


def test_refused_files_are_tried_again(
    space: MobileNetV3Space, fake: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeClient, "reasons", iter(["busy", None, "busy again"]))
    measured = measure_files({"a": Path("a"), "b": Path("b")}, space, fake, LocalDevice())
    assert FakeClient.calls == [("a", "b"), ("a",), ("a",)]
    assert [measured[name].refused for name in "ab"] == [None, None]


def test_what_stays_refused_says_why(
    space: MobileNetV3Space, fake: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeClient, "reasons", iter(["busy", "busy again", None]))
    result = measure_files({"a": Path("a")}, space, fake, LocalDevice(), attempts=2)["a"]
    assert len(FakeClient.calls) == 2
    assert result.refused == "busy again"


def test_many_files_go_in_groups_that_all_have_anchors(space: MobileNetV3Space, fake: LatencyTable) -> None:
    names = [f"m{number}" for number in range(measure_module.GROUP + 1)]
    measured = measure_files({name: Path(name) for name in names}, space, fake, LocalDevice())
    assert [len(call) for call in FakeClient.calls] == [measure_module.GROUP // 2, measure_module.GROUP // 2 + 1]
    assert list(measured) == names


@pytest.mark.parametrize("error", [2.0, float("inf")])
def test_an_interval_stays_finite(
    space: MobileNetV3Space, fake: LatencyTable, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    monkeypatch.setattr(FakeClient, "standard_error", error)
    result = measure_files({"a": Path("a")}, space, fake, LocalDevice())["a"]
    assert (result.low_ms, result.high_ms) == (0.0, 6.0)


def test_another_machine_or_an_upgraded_runtime_is_refused(
    space: MobileNetV3Space, table: LatencyTable, files: dict[str, Path]
) -> None:
    other = replace(table, fingerprint={**table.fingerprint, "onnxruntime": "1.0.0"})
    with pytest.raises(TableError, match=r"onnxruntime is '1.0.0' in the table, '.*' wanted.*Measure this target"):
        measure_files(files, space, other, LocalDevice(), plan=PLAN)


def test_a_bad_file_is_named(space: MobileNetV3Space, table: LatencyTable, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(MeasurementError, match=r"cannot load bad\.onnx"):
        measure_files({"bad": tmp_path / "bad.onnx"}, space, table, LocalDevice(), plan=PLAN)


def test_a_table_without_anchors_has_no_scale(space: MobileNetV3Space, table: LatencyTable) -> None:
    assert anchor_scale(table.anchors) == pytest.approx(2.0)
    with pytest.raises(PredictorError, match="no anchors"):
        measure_files({}, space, replace(table, models=()), LocalDevice())
