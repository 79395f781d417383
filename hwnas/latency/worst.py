"""Networks profiled block by block beside a table's anchors: where a bad prediction comes from."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hwnas.errors import PredictorError
from hwnas.latency.graph import write_graph
from hwnas.latency.measure import anchor_scale
from hwnas.latency.rows import position_times
from hwnas.latency.sweep import SweepConfig
from hwnas.space import Arch, SearchSpace, format_arch, parse_arch
from hwprof.client import AgentClient, Result
from hwprof.devices import Device
from hwprof.errors import MeasurementError
from hwprof.table import LatencyTable
from hwprof.target import Plan


def profile_networks(
    archs: Sequence[Arch], space: SearchSpace, table: LatencyTable, device: Device, plan: Plan
) -> dict[Arch, dict[int, float] | str]:
    """Architecture -> profiled ms of each position on the table's scale, or the reason why there is none.

    Raises TableError if this machine is not the table's, DeviceError if the device goes away.
    """
    with AgentClient(device, table.target) as client, tempfile.TemporaryDirectory(prefix="hwnas-worst-") as folder:
        table.require_target(table.target, client.fingerprint)
        models, anchors = {}, {}
        for number, arch in enumerate(archs):
            models[format_arch(arch)] = path = Path(folder) / f"{number}.onnx"
            write_graph(space, arch, table.target.batch, path)
        for number, anchor in enumerate(table.anchors):
            anchors[f"anchor {anchor.name}"] = path = Path(folder) / f"anchor{number}.onnx"
            write_graph(space, parse_arch(anchor.name), table.target.batch, path)
        try:
            group = client.measure(models, anchors, SweepConfig(plan=plan).node_plan, nodes=True)
        except MeasurementError as error:  # a runtime that cannot profile nodes: the validation holds without
            return dict.fromkeys(archs, str(error))
    results = {result.name: result for result in group.results}
    return {arch: _times(results[format_arch(arch)], anchor_scale(table.anchors)) for arch in archs}


def _times(result: Result, scale: float) -> dict[int, float] | str:
    if result.refused or result.nodes is None:
        return result.refused or "the runtime gives no times of single nodes"
    try:
        return {position: ratio * scale for position, ratio in position_times(result.nodes).items()}
    except PredictorError as error:
        return str(error)
