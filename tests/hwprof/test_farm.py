"""Several agents that share a profile's groups; each is a process of its own on this machine."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents import ScriptDevice, runtime_device, write_model

from hwprof.client import ATTEMPTS
from hwprof.devices.local import LocalDevice
from hwprof.errors import DeviceError, MeasurementError, TargetError
from hwprof.farm import Farm, Job, first_reachable
from hwprof.target import Plan, Target

PLAN = Plan(sweeps=3, max_sweeps=3, visit_ms=1.0, max_standard_error=9.0, max_spread=9.0, max_drift=9.0)
ASLEEP = "raise SystemExit('asleep')"


def jobs(folder: Path, number: int, models: int = 1) -> list[Job]:
    model = write_model(folder / "model.onnx")

    def write(name: str) -> Callable[[Path], tuple[Mapping[str, Path], Mapping[str, Path]]]:
        return lambda folder: ({f"{name} {n}": model for n in range(models)}, {"anchor": model})

    return [Job(write(str(n)), PLAN, seed=n) for n in range(number)]


def test_devices_share_the_groups_and_each_is_measured_once(tmp_path: Path) -> None:
    with Farm({"a": LocalDevice(), "b": LocalDevice()}, Target()) as farm:
        given = jobs(tmp_path, 8)
        found = list(farm.measure(given))
        farm.restart()
        found += farm.measure(given[:1])
    assert Counter(id(job) for _, job, _ in found[:8]) == Counter(id(job) for job in given)
    assert {text for text, _, _ in found} == {"a", "b"}
    for _, job, group in found:
        assert [result.name for result in group.results] == [f"{job.seed} 0"]
        assert group.results[0].ratio > 0


@dataclass
class Mortal(LocalDevice):
    """This machine, whose first agents are killed while they measure."""

    lives: int
    patience_seconds: float = 0.0
    started: int = 0

    def start_agent(self) -> subprocess.Popen[str]:
        process = super().start_agent()
        self.started += 1
        if self.started <= self.lives:
            threading.Timer(1.0, process.kill).start()
        return process


def slow_jobs(folder: Path, number: int) -> list[Job]:
    model, plan = write_model(folder / "model.onnx"), Plan(sweeps=3, max_sweeps=3, visit_ms=150.0, max_runs=10**6)
    return [Job(lambda _: ({"model": model}, {"anchor": model}), plan, seed=n) for n in range(number)]


def test_a_device_that_dies_costs_its_group_which_another_one_takes(tmp_path: Path) -> None:
    devices = {"mortal": Mortal(1), "steady": LocalDevice()}
    with Farm(devices, Target()) as farm:
        given = slow_jobs(tmp_path, 4)
        found = list(farm.measure(given))
        assert farm.unreachable == {}
    assert sorted(job.seed for _, job, _ in found) == [0, 1, 2, 3]
    assert devices["mortal"].started == 2


def test_a_device_that_stays_away_is_left_out(tmp_path: Path) -> None:
    class Gone(Mortal):
        def start_agent(self) -> subprocess.Popen[str]:
            if self.started:
                raise DeviceError("it went away")
            return super().start_agent()

    with Farm({"gone": Gone(1), "steady": LocalDevice()}, Target()) as farm:
        found = list(farm.measure(slow_jobs(tmp_path, 4)))
        assert list(farm.clients) == ["steady"]
        assert "it went away" in farm.unreachable["gone"]
    assert sorted(job.seed for _, job, _ in found) == [0, 1, 2, 3]
    assert found[-1][0] == "steady"


def test_without_any_device_left_the_error_says_so_and_what_was_measured_stays(tmp_path: Path) -> None:
    class Last(Mortal):
        def start_agent(self) -> subprocess.Popen[str]:
            if self.started:
                raise DeviceError("it went away")
            return super().start_agent()

    with Farm({"last": Last(1)}, Target()) as farm:
        found = farm.measure([*jobs(tmp_path, 1), *slow_jobs(tmp_path, 5)])
        assert next(found)[1].seed == 0
        with pytest.raises(DeviceError, match="it went away"):
            list(found)


FATAL = """
import os
from hwprof.timing import Clock

class Fake:
    def versions(self): return {"fake": "1"}
    def clock(self, target): return Clock()
    def load(self, path, target, *, profile_nodes):
        if path.name == "fatal.onnx":
            os._exit(3)
        return self
    def run(self): sum(range(1000))
    def close(self): return None
"""


def test_a_file_that_ends_every_agent_ends_the_farm_and_not_never(tmp_path: Path) -> None:
    device = runtime_device(FATAL, tmp_path)
    fatal = write_model(tmp_path / "fatal.onnx")
    with (
        Farm({"local": device}, Target(runtime="fake")) as farm,
        pytest.raises(DeviceError, match=r"the agent on local ended \(exit code 3\)"),
    ):
        list(farm.measure([Job(lambda _: ({"fatal": fatal}, {}), PLAN)]))
    assert len(device.started) == ATTEMPTS


def test_a_bad_file_is_an_error_of_that_file(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    with (
        Farm({"a": LocalDevice(), "b": LocalDevice()}, Target()) as farm,
        pytest.raises(MeasurementError, match=r"cannot load bad\.onnx"),
    ):
        list(farm.measure([Job(lambda _: ({"bad": bad}, {}), PLAN), *jobs(tmp_path, 3)]))


def test_devices_of_two_kinds_are_no_farm() -> None:
    script = """
        from hwprof import agent, host
        real = host.identity
        host.identity = lambda: {**real(), 'cpu': 'Other'}
        agent.main()
    """
    with pytest.raises(DeviceError, match=r"a and b are not devices of one kind \(cpu .* and 'Other'\)"):
        Farm({"a": LocalDevice(), "b": ScriptDevice(script=script)}, Target()).__enter__()


def test_what_cannot_be_reached_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    devices: dict[str, Any] = {"away": ScriptDevice(script=ASLEEP), "here": LocalDevice()}
    with Farm(devices, Target()) as farm:
        assert "asleep" in farm.unreachable["away"]
        assert [text for text, _, _ in farm.measure(jobs(tmp_path, 2))] == ["here", "here"]
    assert first_reachable(devices, Target()) is devices["here"]
    with pytest.raises(DeviceError, match=r"agent on away ended.*: asleep; also: the agent"):
        Farm({"also": ScriptDevice(script=ASLEEP), "away": ScriptDevice(script=ASLEEP)}, Target()).__enter__()


def test_a_target_that_no_device_has_is_not_a_matter_of_devices() -> None:
    with pytest.raises(TargetError, match="has no precision 'bf16'"):
        Farm({"a": LocalDevice(), "b": LocalDevice()}, Target(precision="bf16")).__enter__()


def test_a_device_is_waited_for_and_that_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Sleepy(Mortal):
        def start_agent(self) -> subprocess.Popen[str]:
            if self.started == 1:
                self.started += 1
                raise DeviceError("it is asleep")
            return super().start_agent()

    device = Sleepy(1, patience_seconds=20.0)
    with caplog.at_level(logging.WARNING, "hwprof"), Farm({"local": device}, Target()) as farm:
        assert len(list(farm.measure(slow_jobs(tmp_path, 3)))) == 3
    assert device.started == 3
    assert "it is asleep; trying again" in caplog.text
