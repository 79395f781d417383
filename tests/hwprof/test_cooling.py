from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agents import runtime_device, write_model

from hwprof import cooling
from hwprof.client import AgentClient
from hwprof.errors import MeasurementError, TargetError
from hwprof.target import Plan, Target
from hwprof.timing import Clock

PLAN = Plan(cool_down_seconds=60)


@dataclass
class Phone:
    """A clock, and a model that is as much slower as the phone is warm; every second of rest cools it."""

    slower: float
    cooling: float
    now_ns: int = 0
    rested: list[float] = field(default_factory=list)

    def run(self) -> None:
        self.now_ns += int(2e6 * (1 + self.slower))

    def sleep(self, seconds: float) -> None:
        self.rested.append(seconds)
        self.slower = max(0.0, self.slower - self.cooling * seconds)

    def cool_down(self, plan: Plan, reference_ms: float = 2.0) -> tuple[float, list[float]]:
        told: list[float] = []
        clock = Clock(wall=lambda: self.now_ns, cpu=None)
        waited = cooling.cool_down(
            {"a": self, "b": self}, {"a": reference_ms, "b": reference_ms}, plan, clock, told.append, sleep=self.sleep
        )
        return waited, told


def test_a_warm_device_is_waited_for_until_it_is_within_three_percent() -> None:
    waited, told = Phone(slower=0.12, cooling=0.01).cool_down(PLAN)
    assert waited == 10.0
    assert told == pytest.approx([0.12, 0.07])


@pytest.mark.parametrize("slower", [0.0, 0.029, -0.5])
def test_a_cool_device_is_not_waited_for(slower: float) -> None:
    assert Phone(slower, cooling=0.0).cool_down(PLAN) == (0.0, [])


def test_the_wait_has_a_bound() -> None:
    phone = Phone(slower=0.5, cooling=0.0)
    assert phone.cool_down(Plan(cool_down_seconds=12))[0] == 12
    assert phone.rested == [5.0, 5.0, 2.0]
    assert phone.cool_down(Plan()) == (0.0, [])


def test_every_anchor_needs_a_reference() -> None:
    phone = Phone(0.0, 0.0)
    for reference in ({}, {"b": 1.0}, {"a": 0.0}):
        with pytest.raises(MeasurementError, match="cool-down needs a reference above 0 for every anchor"):
            cooling.cool_down({"a": phone}, reference, PLAN, Clock(), lambda _: None)


@pytest.mark.parametrize("seconds", [-1.0, 3601.0, float("nan")])
def test_a_plan_with_a_senseless_cool_down_is_refused(seconds: float) -> None:
    with pytest.raises(TargetError, match="cool_down_seconds between 0 and 3600"):
        Plan(cool_down_seconds=seconds)


WARMING = """
import time
from hwprof.timing import Clock

runs = 0

class Fake:
    def versions(self): return {"fake": "1"}
    def clock(self, target): return Clock(cpu=None)
    def load(self, path, target, profile_nodes): return Model()

class Model:
    def run(self):
        # the first group warms it up, and rest does not help: a group is (3 sweeps + 3 warm-ups) x 2 models
        global runs
        runs += 1
        time.sleep(0.002 if runs <= 12 else 0.004)
    def close(self): return None
"""


def test_the_agent_waits_and_tells_and_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model.onnx")
    loose = {"max_standard_error": 1e9, "max_spread": 1e9, "max_drift": 1e9}
    plan = Plan(sweeps=3, max_sweeps=3, min_runs=1, max_runs=1, cool_down_seconds=1, **loose)
    told: list[str] = []
    with AgentClient(runtime_device(WARMING, tmp_path), Target(runtime="fake"), waiting=told.append) as client:
        first = client.measure({"m": model}, {"a": model}, plan)
        assert told == []
        assert "cooling_seconds" not in first.state
        never = Plan(sweeps=3, max_sweeps=3, min_runs=1, max_runs=1, **loose)
        assert "cooling_seconds" not in client.measure({"m": model}, {"a": model}, never).state
        assert client.measure({"m": model}, {"a": model}, plan).state["cooling_seconds"] == "1"
        (text,) = told
        assert text.startswith("local has become ")
        assert text.endswith("% slower: waiting until it has cooled")
        given = client.measure({"m": model}, {"a": model}, plan, reference_ms={"a": 100.0})
        assert "cooling_seconds" not in given.state
        with pytest.raises(MeasurementError, match="a reference above 0 for every anchor: a"):
            client.measure({"m": model}, {"a": model}, plan, reference_ms={"b": 1.0})


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_heat_and_charge(tmp_path: Path) -> None:
    write(
        tmp_path,
        thermal__thermal_zone0__type="battery", thermal__thermal_zone0__temp="61000",
        thermal__thermal_zone1__type="cpu-1-2-usr", thermal__thermal_zone1__temp="48500",
        thermal__thermal_zone2__type="x86_pkg_temp", thermal__thermal_zone2__temp="41000",
        thermal__thermal_zone3__type="cpu-broken", thermal__thermal_zone3__temp="-274000",
        thermal__thermal_zone4__type="soc", thermal__thermal_zone4__temp="",
        power_supply__usb__type="USB", power_supply__usb__capacity="100",
        power_supply__BAT0__type="Battery", power_supply__BAT0__capacity="85", power_supply__BAT0__status="Discharging",
    )  # fmt: skip
    assert cooling.state(tmp_path) == {"temperature_c": "48.5", "battery": "85%, discharging"}


def test_the_hottest_sensor_where_none_is_named_for_the_processor(tmp_path: Path) -> None:
    write(tmp_path, thermal__thermal_zone0__type="acpitz", thermal__thermal_zone0__temp="27800")
    write(tmp_path, thermal__thermal_zone1__type="skin", thermal__thermal_zone1__temp="31000")
    assert cooling.state(tmp_path) == {"temperature_c": "31.0"}
    assert cooling.state(tmp_path / "nothing") == {}
