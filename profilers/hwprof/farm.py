"""Several devices of one kind that share the work of one profile; one device is a farm of one.

Every result is a ratio to anchors that the same device measured in the same fraction of a second, so it does not
matter which of them measured what. A device that goes away costs the group that it was measuring: another one takes
that group, and the device takes part again once it answers.
"""

from __future__ import annotations

import collections
import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from hwprof.client import ATTEMPTS, AgentClient, Group
from hwprof.devices import Device
from hwprof.errors import DeviceError, HwprofError
from hwprof.target import Plan, Target

# Model files and anchors' files, by name.
Files = tuple[Mapping[str, Path], Mapping[str, Path]]


@dataclass(frozen=True)
class Job:
    """A group to be measured: `write` makes its files, in the folder given, when its turn has come."""

    write: Callable[[Path], Files]
    plan: Plan
    nodes: bool = False
    seed: int = 0


class Farm:
    """Agents on every device that can be reached, opened on one target. Use as a context manager.

    `devices` by their texts; `unreachable` says why some of them are not among `clients`. Raises DeviceError if none
    can be reached, or if two are not of one kind (another processor, another version of the runtime).
    """

    def __init__(self, devices: Mapping[str, Device], target: Target) -> None:
        self.clients = {text: AgentClient(device, replace(target, device=text)) for text, device in devices.items()}
        self.unreachable: dict[str, str] = {}
        self._patience = {text: device.patience_seconds for text, device in devices.items()}

    def __enter__(self) -> Farm:
        try:
            self._restart(dict.fromkeys(self.clients, 0.0))
            self._require_one_kind()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the agents."""
        for client in self.clients.values():
            with contextlib.suppress(OSError):
                client.close()

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a table measured here is valid for, the same on every device."""
        return next(iter(self.clients.values())).fingerprint

    def _require_one_kind(self) -> None:
        (first, reference), *others = self.clients.items()
        for text, client in others:
            ours, theirs = reference.fingerprint, client.fingerprint
            differing = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
            if differing:
                difference = "; ".join(f"{key} {ours.get(key)!r} and {theirs.get(key)!r}" for key in differing)
                raise DeviceError(
                    f"{first} and {text} are not devices of one kind ({difference}): profile each on its own"
                )

    def restart(self) -> None:
        """New agent processes: another session as far as caches, memory layout and time go.

        A device that does not answer any more is left out. Raises DeviceError if it was the last one.
        """
        self._restart(self._patience)

    def _restart(self, patience: Mapping[str, float]) -> None:
        for text, client in list(self.clients.items()):
            if (error := _failure(client, patience[text])) is not None:
                self._leave_out(text, error)

    def measure(self, jobs: Iterable[Job]) -> Iterator[tuple[str, Job, Group]]:
        """Measure every job on the next device that is free; (device, job, group), in the order of completion.

        Raises DeviceError when no device is left, or a job ended ATTEMPTS agents, MeasurementError if a file cannot be
        run; what was given before stays measured.
        """
        coming, returned = iter(jobs), collections.deque[Job]()
        failures = collections.Counter[Job]()
        idle = list(self.clients)
        running: dict[Future[Group | None], tuple[str, Job | None]] = {}
        pool = ThreadPoolExecutor(len(self.clients), thread_name_prefix="hwprof-farm")
        try:
            while True:
                while idle and (job := returned.popleft() if returned else next(coming, None)) is not None:
                    text = idle.pop(0)
                    running[pool.submit(_measure, self.clients[text], job)] = text, job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    text, finished = running.pop(future)
                    try:
                        group = future.result()
                    except DeviceError as error:
                        if finished is None:
                            self._leave_out(text, error)
                            continue
                        failures[finished] += 1
                        if failures[finished] >= ATTEMPTS:
                            raise
                        returned.append(finished)
                        running[pool.submit(self.clients[text].restart, self._patience[text])] = text, None
                        continue
                    idle.append(text)
                    if finished is not None and group is not None:
                        yield text, finished, group
        except BaseException:
            self.close()  # ends what still runs
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _leave_out(self, text: str, error: HwprofError) -> None:
        """Go on without a device that stays away. Raises the error if it was the last one."""
        if len(self.clients) == 1:
            others = "".join(f"; {other}: {reason}" for other, reason in self.unreachable.items())
            raise type(error)(f"{error}{others}") from error
        self.unreachable[text] = str(error)
        del self.clients[text]


def _measure(client: AgentClient, job: Job) -> Group:
    with tempfile.TemporaryDirectory(prefix="hwprof-group-") as folder:
        models, anchors = job.write(Path(folder))
        return client.measure(models, anchors, job.plan, nodes=job.nodes, seed=job.seed)


def _failure(client: AgentClient, patience_seconds: float = 0.0) -> HwprofError | None:
    try:
        client.restart(patience_seconds)
    except HwprofError as error:
        return error
    return None


def first_reachable(devices: Mapping[str, Device], target: Target) -> Device:
    """One device of a farm, for what is measured on one. Raises the error of the last one if none can be reached."""
    *others, last = devices.items()
    for text, device in others:
        with contextlib.closing(AgentClient(device, replace(target, device=text))) as client:
            if _failure(client) is None:
                return device
    return last[1]  # whoever uses it is told why it does not answer
