"""The measurements of a validation, in a journal as they come."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, with_config

from hwnas.errors import PredictorError
from hwnas.graphs import write_arch
from hwnas.latency.measure import GROUP, Measured, measure_files, split_evenly
from hwnas.latency.worst import profile_networks
from hwnas.progress import Progress
from hwnas.space import SearchSpace, format_arch, parse_arch
from hwnas.validation import NetworkResult
from hwprof.devices import Device
from hwprof.errors import DeviceError, TableError
from hwprof.journal import Journal, Record
from hwprof.table import LatencyTable, dump_table
from hwprof.target import Plan

FIRST, AGAIN, NODES = "unseen networks", "second session", "worst networks, block by block"
JOURNAL = "validation.journal"
_RECORDED = ConfigDict(strict=True, extra="forbid")  # a refused measurement may be infinite


@dataclass(frozen=True)
class ValidateConfig:
    """How much is measured: unseen networks, if a second session repeats them, how many of the worst to profile."""

    networks: int = 60
    seed: int = 0
    again: bool = True
    worst: int = 3
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        for name, least in (("networks", 1), ("seed", 0), ("worst", 0)):
            if getattr(self, name) < least:
                raise PredictorError(f"{name} of a validation must be at least {least}, got {getattr(self, name)}")


@with_config(_RECORDED)
@dataclass(frozen=True)
class _Measurements:
    """A record of a phase that measured networks."""

    phase: Literal["unseen networks", "second session"]
    seconds: float
    measured: tuple[Measured, ...]


@with_config(_RECORDED)
@dataclass(frozen=True)
class _Profiles:
    """The record of networks profiled by position, or why there is none."""

    phase: Literal["worst networks, block by block"]
    seconds: float
    profiled: dict[str, dict[int, float] | str]


_RECORDS: TypeAdapter[_Measurements | _Profiles] = TypeAdapter(_Measurements | _Profiles)


def check(record: Record) -> None:
    """Raise ValueError unless the record is one of this journal."""
    _RECORDS.validate_json(json.dumps(record))


class Session:
    """The journal, and what has been measured."""

    def __init__(
        self,
        space: SearchSpace,
        table: LatencyTable,
        device: Device,
        folder: Path,
        config: ValidateConfig,
        progress: Progress,
    ) -> None:
        self.space, self.table, self.device, self.config, self.progress = space, table, device, config, progress
        header = {
            "space": {"name": space.name, **space.config},
            "table": hashlib.sha256(dump_table(table).encode()).hexdigest(),
            "config": asdict(config),
        }
        self.journal = Journal(folder / JOURNAL, header, check)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def records(self, phase: str) -> list[Record]:
        """The journal's records of a phase."""
        return [record for record in self.journal.records if record["phase"] == phase]

    @property
    def seconds(self) -> float:
        """Wall time of all that was measured, agents' starts included."""
        return float(sum(record["seconds"] for record in self.journal.records))

    def measure(self, phase: str, networks: Sequence[NetworkResult]) -> dict[str, Measured]:
        """Architecture -> its measurement in this phase; measures, group by group, what the journal lacks."""
        found = self._measured(phase)
        pending = [network.arch for network in networks if network.arch not in found]
        done = len(networks) - len(pending)
        for names in split_evenly(pending, GROUP):
            self.progress(phase, done, len(networks))
            begin = time.perf_counter()
            measured = self._measure_group(names, done, len(networks))
            self.journal.append(
                {
                    "phase": phase,
                    "seconds": time.perf_counter() - begin,
                    "measured": [asdict(one) for one in measured.values()],
                }
            )
            done += len(names)
        self.progress(phase, len(networks), len(networks))
        return self._measured(phase)

    def _measured(self, phase: str) -> dict[str, Measured]:
        found = [Measured(**values) for record in self.records(phase) for values in record["measured"]]
        return {one.name: one for one in found}

    def _measure_group(self, names: Sequence[str], done: int, total: int) -> dict[str, Measured]:
        with tempfile.TemporaryDirectory(prefix="hwnas-validate-") as folder:
            files = {
                name: write_arch(self.space, parse_arch(name), self.table.target, Path(folder) / str(number))
                for number, name in enumerate(names)
            }
            try:
                return measure_files(files, self.space, self.table, self.device, plan=self.config.plan)
            except DeviceError as error:
                raise DeviceError(
                    f"{error}; {done} of {total} networks of this session are saved, the same command goes on there"
                ) from error

    def profile(self, names: Sequence[str]) -> dict[str, dict[int, float] | str]:
        """Architecture -> profiled ms of each position, or why there is none, of these networks and of the anchors."""
        if not names:
            return {}
        if not self.records(NODES):
            self.progress(NODES, 0, len(names))
            begin = time.perf_counter()
            archs = [parse_arch(name) for name in (*names, *(anchor.name for anchor in self.table.anchors))]
            times = profile_networks(archs, self.space, self.table, self.device, self.config.plan)
            profiled = {format_arch(arch): found for arch, found in times.items()}
            self.journal.append({"phase": NODES, "seconds": time.perf_counter() - begin, "profiled": profiled})
            self.progress(NODES, len(names), len(names))
        profiled = self.records(NODES)[0]["profiled"]
        if missing := set(names) - set(profiled):
            raise TableError(f"{self.journal.path} lacks the profile of {min(missing)}; delete it to measure anew")
        return {
            name: found if isinstance(found, str) else {int(position): ms for position, ms in found.items()}
            for name, found in profiled.items()
        }
