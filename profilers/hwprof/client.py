"""The host's side of the agent: start it, give it groups of models, and survive its death."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import queue
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprof import errors
from hwprof.devices import Device
from hwprof.errors import DeviceError, HwprofError
from hwprof.target import Plan, Target, to_json

STARTUP_SECONDS = 60.0


@dataclass(frozen=True)
class Result:
    """What the agent measured of one model; times are relative to the anchors' geometric mean (see hwprof.timing)."""

    name: str
    ratio: float
    standard_error: float
    spread: float
    ratios: tuple[float, ...]
    wall_ms: float
    interrupted: float
    refused: str | None
    nodes: tuple[tuple[str, float], ...] | None


@dataclass(frozen=True)
class Group:
    """A measured group: its results, and the state of the machine while it ran."""

    results: tuple[Result, ...]
    anchor_ms: tuple[float, ...]
    anchors: dict[str, tuple[float, ...]]
    drift: float
    seconds: float
    stolen_seconds: float
    involuntary_switches: int
    state: dict[str, str]


@dataclass(frozen=True)
class Output:
    """An array that a model computed on the device: its shape and its numbers, float32, little-endian, row-major."""

    shape: tuple[int, ...]
    data: bytes


class AgentClient:
    """A running agent, opened on one target. Use as a context manager."""

    def __init__(self, device: Device, target: Target, *, timeout_seconds: float = 300.0) -> None:
        self._device, self._target, self._timeout = device, target, timeout_seconds
        self._process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> AgentClient:
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a table of this target is only valid for: identity of the machine and versions of the runtime."""
        return {**self.ready["identity"], **self.ready["versions"]}

    def restart(self) -> None:
        """Start the agent anew. Raises DeviceError if it does not answer, TargetError if it refuses the target."""
        self.close()
        self._process = self._device.start_agent()
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._complaints: list[str] = []
        self._readers = (
            threading.Thread(target=_pump, args=(self._process, self._lines), daemon=True),
            threading.Thread(target=_collect, args=(self._process, self._complaints), daemon=True),
        )
        for reader in self._readers:
            reader.start()
        try:
            self._send({"job": "open", "target": to_json(self._target)})
            self.ready = self._receive(STARTUP_SECONDS)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the agent; does nothing if it already ended."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join(timeout=2)
        self._process = None

    def measure(
        self,
        models: Mapping[str, Path],
        anchors: Mapping[str, Path],
        plan: Plan,
        *,
        nodes: bool = False,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Group:
        """Measure a group of model files beside anchors.

        Raises DeviceError if the agent dies or is silent for too long (call `restart`, then measure again), and
        MeasurementError if a file cannot be run.
        """
        self._send(
            {
                "job": "group",
                "models": {name: self._device.put(path) for name, path in models.items()},
                "anchors": {name: self._device.put(path) for name, path in anchors.items()},
                "plan": to_json(plan),
                "nodes": nodes,
                "seed": seed,
            }
        )
        results: list[Result] = []
        while True:
            message = self._receive(self._timeout)
            event = message.pop("event")
            if event == "sweep" and progress is not None:
                progress(message["done"])
            elif event == "result":
                message["ratios"] = tuple(message["ratios"])
                if message["nodes"] is not None:
                    message["nodes"] = tuple((str(name), float(ratio)) for name, ratio in message["nodes"])
                results.append(Result(**message))
            elif event == "done":
                message["anchor_ms"] = tuple(message["anchor_ms"])
                message["anchors"] = {name: tuple(times) for name, times in message["anchors"].items()}
                return Group(tuple(results), **message)

    def infer(self, model: Path, inputs: Sequence[Path]) -> list[Output]:
        """What a model file computes on the device from float32 inputs in .npy files.

        Raises DeviceError if the agent dies or answers nonsense, MeasurementError if the file cannot be run.
        """
        self._send({"job": "infer", "model": self._device.put(model), "inputs": [*map(self._device.put, inputs)]})
        outputs = []
        for answer in self._receive(self._timeout)["outputs"]:
            shape = tuple(int(extent) for extent in answer["shape"])
            data = base64.b64decode(answer["float32"], validate=True)
            if len(data) != 4 * math.prod(shape):
                raise DeviceError(f"the agent on {self._target.device} sent {len(data)} bytes for the shape {shape}")
            outputs.append(Output(shape, data))
        return outputs

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._death() from error

    def _receive(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise DeviceError(
                f"the agent on {self._target.device} said nothing for {timeout:g} s; check that the device is awake"
            ) from None
        if line is None:
            raise self._death()
        try:
            message = json.loads(line)
            event = message["event"]
        except (ValueError, KeyError, TypeError) as error:
            raise DeviceError(f"the agent on {self._target.device} answered {line[:200]!r}, not a message") from error
        if event == "error":
            kind = getattr(errors, str(message.get("kind")), HwprofError)
            raise kind(str(message.get("message")))
        return dict(message)

    def _death(self) -> DeviceError:
        # Its last words and its exit code can come a moment after the end of its answers.
        self._readers[1].join(timeout=2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process:
                self._process.wait(timeout=2)
        code = self._process.poll() if self._process else None
        said = " ".join(self._complaints[-5:]).strip() or "nothing on standard error"
        return DeviceError(f"the agent on {self._target.device} ended (exit code {code}): {said}")


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError), process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def _collect(process: subprocess.Popen[str], complaints: list[str]) -> None:
    assert process.stderr is not None
    with contextlib.suppress(ValueError, OSError), process.stderr:
        for line in process.stderr:
            complaints.append(line.rstrip())
            del complaints[:-50]
