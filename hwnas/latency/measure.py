"""Measures model files beside a table's anchors, so that the numbers stand on the table's scale."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hwnas.errors import PredictorError
from hwnas.graphs import write_arch
from hwnas.space import SearchSpace, parse_arch
from hwprof.client import AgentClient, Group
from hwprof.devices import Device
from hwprof.table import LatencyTable, Model
from hwprof.target import Plan
from hwprof.timing import geometric_mean

# A result's interval is this many standard errors to each side: 95% for a normal error.
STANDARD_ERRORS = 1.96
# At most so many files are measured together, interleaved; every group pays for the anchors.
GROUP = 16

Item = TypeVar("Item")


@dataclass(frozen=True)
class Measured:
    """Latency of a file on the anchors' scale with its 95% interval, the plain wall time, and why not if refused.

    `anchor_drift` is how much slower (above 0) the anchors ran now than when the table was made.
    """

    name: str
    ms: float
    low_ms: float
    high_ms: float
    wall_ms: float
    anchor_drift: float
    refused: str | None


def anchor_scale(anchors: Sequence[Model]) -> float:
    """The ms that a ratio of 1 stands for: the geometric mean of the anchors' latencies in the table."""
    if not anchors:
        raise PredictorError("the latency table has no anchors, so nothing can be put on its scale; profile again")
    return geometric_mean([anchor.ms for anchor in anchors])


def write_models(space: SearchSpace, table: LatencyTable, models: Sequence[Model], folder: Path) -> dict[str, Path]:
    """The graphs of a table's models in the folder: "role name" -> file."""
    return {
        f"{model.role} {model.name}": write_arch(
            space, parse_arch(model.name), table.target, folder / f"{model.role}-{number}"
        )
        for number, model in enumerate(models)
    }


def split_evenly(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    """Parts of almost one size and at most `most`."""
    parts = -(-len(items) // most)
    for number in range(parts):
        yield items[number * len(items) // parts : (number + 1) * len(items) // parts]


def measure_group(
    client: AgentClient, models: Mapping[str, Path], anchors: Mapping[str, Path], plan: Plan, **options: Any
) -> Group:
    """`AgentClient.measure`, anew if the device goes away and comes back: only the group in flight is lost.

    Raises DeviceError if the device stays away.
    """
    return client.patiently(lambda: client.measure(models, anchors, plan, **options))


def measure_files(
    files: Mapping[str, Path],
    space: SearchSpace,
    table: LatencyTable,
    device: Device,
    *,
    plan: Plan | None = None,
    attempts: int = 3,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Measured]:
    """Measure model files of the table's target, each beside the table's anchors; refused ones up to `attempts` times.

    Raises TableError if this machine is not the table's, DeviceError if the device goes away, MeasurementError if a
    file cannot be run.
    """
    plan = plan or Plan()
    scale = anchor_scale(table.anchors)
    measured: dict[str, Measured] = {}
    with AgentClient(device, table.target) as client, tempfile.TemporaryDirectory(prefix="hwnas-anchors-") as folder:
        table.require_target(table.target, client.fingerprint)
        anchors = write_models(space, table, table.anchors, Path(folder))
        for attempt in range(attempts):
            pending = {name: path for name, path in files.items() if name not in measured or measured[name].refused}
            done = len(files) - len(pending)
            for names in split_evenly(list(pending), GROUP):
                progress(done, len(files))
                company = {name: pending[name] for name in names}
                group = measure_group(client, company, anchors, plan, seed=attempt)
                done += len(names)
                drift = _drift(group.anchors, table.anchors)
                for result in group.results:
                    ms, margin = result.ratio * scale, min(1.0, STANDARD_ERRORS * result.standard_error)
                    measured[result.name] = Measured(
                        result.name, ms, ms * (1 - margin), ms * (1 + margin), result.wall_ms, drift, result.refused
                    )
        progress(len(files), len(files))
    return measured


def _drift(times: Mapping[str, Sequence[float]], anchors: Sequence[Model]) -> float:
    now = geometric_mean([sorted(values)[len(values) // 2] for values in times.values()])
    return now / anchor_scale(anchors) - 1
