"""The measuring of a profile: devices, journal and groups. What has been measured is in the journal before the next."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import sleep

from hwnas.errors import PredictorError
from hwnas.graphs import write_arch
from hwnas.latency.measure import split_evenly
from hwnas.latency.selection import SweepConfig
from hwnas.progress import Progress
from hwnas.space import Arch, SearchSpace, format_arch, parse_arch
from hwprof.answers import Nonsense, read_recorded
from hwprof.devices import Device
from hwprof.farm import Farm, Files, Job
from hwprof.journal import Journal, Record
from hwprof.target import Plan, Target, to_json

# Phases of a profile, each in agent processes of its own. "again" is the second session, after everything else.
NODES, BLOCKS, WHOLE, AGAIN = "profiled networks", "single blocks", "whole networks", "second session"
# Between two attempts at what was refused: whatever disturbs the machine may end. The pauses double.
PAUSE_SECONDS = (1.0, 16.0)

# Writes what a name stands for as a model file, given a path without suffix; the path written.
Write = Callable[[str, Path], Path]


class Session:
    """Measures named models beside anchors, group by group, on every device of a farm; goes on where a killed one was.

    The journal is beside the table at `path`.
    """

    def __init__(
        self,
        space: SearchSpace,
        target: Target,
        devices: Mapping[str, Device],
        path: Path,
        anchors: Sequence[Arch],
        config: SweepConfig,
        *,
        progress: Progress,
    ) -> None:
        self.space, self.target, self.anchors = space, target, anchors
        self.farm = Farm(devices, target)
        self._path, self._config, self._progress = path, config, progress
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Session:
        with contextlib.ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hwnas-graphs-")))
            stack.enter_context(self.farm)
            self.journal = Journal(
                self._path.with_suffix(".journal"),
                {
                    "space": {"name": self.space.name, **self.space.config},
                    "target": to_json(self.target),
                    "fingerprint": self.farm.fingerprint,
                    "config": asdict(self._config),
                },
                check,
            )
            stack.callback(self.journal.close)
            self._anchor_files = {
                anchor_name(arch): write_arch(self.space, arch, self.target, self._folder / f"anchor-{number}")
                for number, arch in enumerate(self.anchors)
            }
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def accepted(self, phase: str) -> dict[str, Record]:
        """Name -> its accepted result."""
        results = [result for group in self._groups(phase) for result in group["results"]]
        return {result["name"]: result for result in results if not result["refused"]}

    def accepted_archs(self, phase: str) -> dict[Arch, Record]:
        """Architecture -> its accepted result, of a phase that measured networks."""
        return {parse_arch(name): result for name, result in self.accepted(phase).items()}

    def measure_archs(self, phase: str, archs: Sequence[Arch], plan: Plan, *, nodes: bool = False) -> None:
        """Measure what the journal lacks of some networks."""

        def write(name: str, stem: Path) -> Path:
            return write_arch(self.space, parse_arch(name), self.target, stem)

        self.measure(phase, [format_arch(arch) for arch in archs], write, plan, nodes=nodes)

    def measure(self, phase: str, names: Sequence[str], write: Write, plan: Plan, *, nodes: bool = False) -> None:
        """Measure what the journal lacks of a phase, refused models again in new company, up to the last attempt."""
        pending = self._pending(phase, names)
        self._progress(phase, len(names) - len(pending), len(names))
        for attempt in range(self._config.attempts):
            if not pending:
                return
            if attempt:
                sleep(min(PAUSE_SECONDS[0] * 2 ** (attempt - 1), PAUSE_SECONDS[1]))
            companies = split_evenly(pending, self._config.group)
            first = len(self.journal.records)
            jobs = (Job(self._writer(company, write), plan, nodes, first + n) for n, company in enumerate(companies))
            for device, _, group in self.farm.measure(jobs):
                self.journal.append({"phase": phase, "device": device, **asdict(group)})
                pending = self._pending(phase, names)
                self._progress(phase, len(names) - len(pending), len(names))

    def require(self, phase: str, names: Sequence[str], what: str, spared: float) -> None:
        """Raise PredictorError, with the reasons, if more than a share were refused to the last, or all but two."""
        missing = self._pending(phase, names)
        if len(missing) > min(int(spared * len(names)), max(0, len(names) - 3)):
            reasons = {
                result["refused"] for group in self._groups(phase) for result in group["results"] if result["refused"]
            }
            raise PredictorError(
                f"{len(missing)} of {len(names)} {what} were refused {self._config.attempts} times: "
                f"{'; '.join(sorted(reasons)[:3])}. Quieten the machine (other programs, power saving) and run the "
                "same command: it goes on from here"
            )

    def _groups(self, phase: str) -> Iterator[Record]:
        return (record for record in self.journal.records if record["phase"] == phase)

    def _pending(self, phase: str, names: Sequence[str]) -> list[str]:
        done = self.accepted(phase)
        return [name for name in names if name not in done]

    def _writer(self, company: Sequence[str], write: Write) -> Callable[[Path], Files]:
        """Writes a group's files when its turn has come: those of all networks at once would be gigabytes."""

        def files(folder: Path) -> Files:
            return {
                name: write(name, folder / f"model-{number}") for number, name in enumerate(company)
            }, self._anchor_files

        return files


def check(record: Record) -> None:
    """Raise Nonsense unless the record is a measured group of a phase."""
    phase, device = record.get("phase"), record.get("device", "")  # older journals name no device
    if not isinstance(phase, str) or not isinstance(device, str):
        raise Nonsense(f"its phase is {str(phase)[:100]!r}, its device {str(device)[:100]!r}")
    read_recorded(record)


def anchor_name(arch: Arch) -> str:
    """An anchor can be a member of its own group, so anchors go by names of their own."""
    return f"anchor {format_arch(arch)}"
