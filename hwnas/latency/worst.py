"""Networks profiled block by block beside a table's anchors: where a bad prediction comes from."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hwnas.errors import PredictorError
from hwnas.graphs import write_arch
from hwnas.latency.measure import anchor_scale, measure_group, write_models
from hwnas.latency.rows import position_times
from hwnas.latency.selection import SweepConfig
from hwnas.space import Arch, SearchSpace, format_arch, parse_arch
from hwprof.client import AgentClient, Result
from hwprof.devices import Device
from hwprof.errors import MeasurementError
from hwprof.table import LatencyTable
from hwprof.target import Plan

# A block's place in memory moves its time from one process to the next: the median over these is taken.
SESSIONS = 3


def profile_networks(
    archs: Sequence[Arch], space: SearchSpace, table: LatencyTable, device: Device, plan: Plan
) -> dict[Arch, dict[int, float] | str]:
    """Architecture -> profiled ms of each position on the table's scale, or the reason why there is none.

    The median over the sessions in which the network was not refused. Raises TableError if this machine is not the
    table's, DeviceError if the device goes away.
    """
    found: dict[Arch, list[dict[int, float] | str]] = {arch: [] for arch in archs}
    plan, scale = SweepConfig(plan=plan).node_plan, anchor_scale(table.anchors)
    with AgentClient(device, table.target) as client, tempfile.TemporaryDirectory(prefix="hwnas-worst-") as folder:
        table.require_target(table.target, client.fingerprint)
        anchors = write_models(space, table, table.anchors, Path(folder))
        models = {
            format_arch(arch): write_arch(space, arch, table.target, Path(folder) / str(number))
            for number, arch in enumerate(archs)
        }
        for session in range(SESSIONS):
            if session:
                client.restart()
            try:
                group = measure_group(client, models, anchors, plan, nodes=True, seed=session)
            except MeasurementError as error:  # a runtime that cannot profile nodes: the validation holds without
                return dict.fromkeys(archs, str(error))
            for result in group.results:
                found[parse_arch(result.name)].append(_times(result, scale))
    return {arch: _median(sessions) for arch, sessions in found.items()}


def _times(result: Result, scale: float) -> dict[int, float] | str:
    if result.refused or result.nodes is None:
        return result.refused or "the runtime gives no times of single nodes"
    try:
        return {position: ratio * scale for position, ratio in position_times(result.nodes).items()}
    except PredictorError as error:
        return str(error)


def _median(sessions: Sequence[dict[int, float] | str]) -> dict[int, float] | str:
    accepted = [times for times in sessions if isinstance(times, dict)]
    if not accepted:
        return next((reason for reason in sessions if isinstance(reason, str)), "it was not measured")
    positions = {position for times in accepted for position in times}
    return {
        position: statistics.median(times.get(position, 0.0) for times in accepted) for position in sorted(positions)
    }
