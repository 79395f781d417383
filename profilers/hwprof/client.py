"""The host's side of the agent: start it, give it groups of models, and survive its death."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import queue
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from hwprof import answers, lock
from hwprof.answers import Group, Output, Result
from hwprof.devices import Device
from hwprof.errors import DeviceError
from hwprof.target import Plan, Target, to_json

__all__ = ["AgentClient", "Group", "Output", "Result"]

_LOG = logging.getLogger(__name__)
STARTUP_SECONDS = 60.0
# Between two attempts to reach a device that went away; the pauses double.
PAUSE_SECONDS = (1.0, 30.0)
# A job that ends so many agents is the reason that they end.
ATTEMPTS = 3
# Messages that wait here to be read: a device must not be able to fill this machine's memory.
WAITING_LINES = 16

Value = TypeVar("Value")


class AgentClient:
    """An agent on a device, opened on one target. Use as a context manager.

    `waiting` is told what is waited for, as often as there is news: another measurement on the device, or a device
    that went away; by default it is logged. An agent that says nothing for `timeout_seconds` has died.
    """

    def __init__(
        self,
        device: Device,
        target: Target,
        *,
        timeout_seconds: float = 300.0,
        waiting: Callable[[str], None] = _LOG.warning,
    ) -> None:
        self._device, self._target, self._timeout, self._waiting = device, target, timeout_seconds, waiting
        self._process: subprocess.Popen[str] | None = None
        self.ready: dict[str, dict[str, str]] = {}
        # What each set of anchors took in the first group beside them, when the device was cool.
        self._cool_ms: dict[frozenset[str], dict[str, float]] = {}

    def __enter__(self) -> AgentClient:
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a table of this target is only valid for: identity of the machine and versions of the runtime."""
        return _fingerprint(self.ready)

    def restart(self, patience_seconds: float = 0.0) -> None:
        """Start the agent anew, again and again for `patience_seconds` while the device cannot be reached.

        Raises DeviceError if it does not answer, or if it is no longer the machine that it was at first, TargetError
        if it refuses the target.
        """
        first, end, pause = self.ready, time.monotonic() + patience_seconds, PAUSE_SECONDS[0]
        while True:
            try:
                self._start()
                break
            except DeviceError as error:
                left = end - time.monotonic()
                if left <= 0:
                    raise
                self._waiting(f"{error}; trying again for {left:.0f} s")
            time.sleep(min(pause, left))
            pause = min(2 * pause, PAUSE_SECONDS[1])
        if first and (differences := _differences(_fingerprint(first), _fingerprint(self.ready))):
            self.close()
            self.ready = first
            raise DeviceError(
                f"the device that answers as {self._target.device} is another one than before, or was changed: "
                f"{differences}; its numbers do not belong together"
            )

    def patiently(self, job: Callable[[], Value], patience_seconds: float | None = None) -> Value:
        """`job()`, which measures or infers with this client; anew when the device goes away in it and comes back.

        So a device that vanishes costs only what `job` did. It is waited for, up to `patience_seconds` each time (by
        default the device's own). Raises DeviceError if it stays away, comes back as another, or vanishes in each of
        ATTEMPTS attempts.
        """
        patience = self._device.patience_seconds if patience_seconds is None else patience_seconds
        attempt = 1
        while True:
            try:
                return job()
            except DeviceError as error:
                if attempt == ATTEMPTS:
                    raise
                self._waiting(f"{error}; starting it anew")
            attempt += 1
            self.restart(patience)

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
        self._closed.set()
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
        reference_ms: Mapping[str, float] | None = None,
    ) -> Group:
        """Measure a group of model files beside anchors.

        With `plan.cool_down_seconds` the anchors must be back at `reference_ms` before, by default what they took in
        the first group beside them. Raises DeviceError if the agent dies, answers nonsense or is silent for too long
        (see `patiently`), and MeasurementError if a file cannot be run.
        """
        self._device.tidy()
        cool_ms = reference_ms or self._cool_ms.get(frozenset(anchors), {}) if plan.cool_down_seconds else {}
        self._send(
            {
                "job": "group",
                "models": {name: self._device.put(path) for name, path in models.items()},
                "anchors": {name: self._device.put(path) for name, path in anchors.items()},
                "plan": to_json(plan),
                "nodes": nodes,
                "seed": seed,
                "reference_ms": dict(cool_ms),
            }
        )
        with self._understanding():
            group = self._group(models, anchors, plan, progress or (lambda done: None))
        took_ms = {name: statistics.median(times) for name, times in group.anchors.items()}
        if all(ms > 0 for ms in took_ms.values()):
            self._cool_ms.setdefault(frozenset(anchors), took_ms)
        return group

    def infer(self, model: Path, inputs: Sequence[Path]) -> list[Output]:
        """What a model file computes on the device from float32 inputs in .npy files, of any number of whole batches.

        Raises DeviceError if the agent dies or answers nonsense, MeasurementError if the file cannot be run.
        """
        self._device.tidy()
        self._send({"job": "infer", "model": self._device.put(model), "inputs": [*map(self._device.put, inputs)]})
        with self._understanding():
            return answers.read_outputs(self._receive(self._timeout))

    def _start(self) -> None:
        self.close()
        self._process = self._device.start_agent()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING_LINES)
        self._complaints: list[str] = []
        self._closed = threading.Event()
        self._readers = (
            threading.Thread(target=_pump, args=(self._process.stdout, self._lines, self._closed), daemon=True),
            threading.Thread(target=_collect, args=(self._process.stderr, self._complaints), daemon=True),
        )
        for reader in self._readers:
            reader.start()
        try:
            self._send({"job": "open", "target": to_json(self._target), "host": host_name()})
            with self._understanding():
                self.ready = answers.read_ready(self._receive(STARTUP_SECONDS))
        except BaseException:
            self.close()
            raise

    def _group(
        self, models: Collection[str], anchors: Collection[str], plan: Plan, progress: Callable[[int], None]
    ) -> Group:
        """Read the answers to a group up to its end. Raises Nonsense on any that is none."""
        results: list[Result] = []
        missing, loaded, swept, cooling = set(models), 0, 0, 0
        turn = time.monotonic() + lock.MACHINE_SECONDS + self._timeout
        while True:
            message = self._receive(self._timeout)
            event = message["event"]
            if event == "waiting" and time.monotonic() < turn:
                self._waiting(f"{answers.read_holder(message)} measures on {self._target.device}: waiting for its turn")
            elif event == "loading":
                loaded = _next(loaded, answers.read_count(message, len(models) + len(anchors)))
            elif event == "cooling" and cooling < plan.cool_down_seconds:
                cooling += 1
                slower = answers.read_slower(message)
                self._waiting(f"{self._target.device} has become {slower:.0%} slower: waiting until it has cooled")
            elif event == "sweep":
                swept = _next(swept, answers.read_count(message, plan.max_sweeps))
                progress(swept)
            elif event == "result":
                results.append(answers.read_result(message, missing))
                missing.remove(results[-1].name)
            elif event == "done" and not missing:
                return answers.read_group(message, tuple(results), anchors)
            else:
                raise answers.Nonsense(f"{event[:100]!r} is not what comes now")

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            self._readers[0].join(timeout=2)
            if not self._lines.empty():
                self._receive(timeout=0)  # what it said before it ended tells more than that it ended
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
            message = answers.parse(line)
        except answers.Nonsense as error:
            raise DeviceError(
                f"the agent on {self._target.device} answered {line[:200]!r}, not a message: {error}"
            ) from error
        if message["event"] == "error":
            with self._understanding():
                problem = answers.read_error(message)
            raise problem
        return message

    @contextlib.contextmanager
    def _understanding(self) -> Iterator[None]:
        try:
            yield
        except answers.Nonsense as error:
            raise DeviceError(f"the agent on {self._target.device} answered nonsense: {error}") from error

    def _death(self) -> DeviceError:
        # Its last words and its exit code can come a moment after the end of its answers.
        self._readers[1].join(timeout=2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process:
                self._process.wait(timeout=2)
        code = self._process.poll() if self._process else None
        said = answers.plain(" ".join(self._complaints[-5:]).strip()) or "nothing on standard error"
        return DeviceError(f"the agent on {self._target.device} ended (exit code {code}): {said}")


def host_name() -> str:
    """Who asks, for others who wait for the same device: user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _fingerprint(ready: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {**ready["identity"], **ready["versions"]}


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed)


def _next(before: int, count: int) -> int:
    if count <= before:
        raise answers.Nonsense(f"{count} is done after {before}")
    return count


def _pump(stream: IO[str], lines: queue.Queue[str | None], closed: threading.Event) -> None:
    with contextlib.suppress(ValueError, OSError), stream:
        while line := stream.readline(answers.MAX_LINE):
            _hand_over(line, lines, closed)
            if closed.is_set() or len(line) == answers.MAX_LINE:
                break  # more would not be read, and a line without end is no message
    _hand_over(None, lines, closed)


def _hand_over(line: str | None, lines: queue.Queue[str | None], closed: threading.Event) -> None:
    while not closed.is_set():
        with contextlib.suppress(queue.Full):
            lines.put(line, timeout=0.1)
            return


def _collect(stream: IO[str], complaints: list[str]) -> None:
    with contextlib.suppress(ValueError, OSError), stream:
        while line := stream.readline(answers.MAX_TEXT):
            complaints.append(line.rstrip())
            del complaints[:-50]
