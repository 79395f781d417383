"""`hwnas profile --check`: does a table still hold on this machine, and how fast is the machine today?

The table's anchors, and networks that were measured with it, are measured again in two sessions. A machine that is
slower all over (another clock, a busier neighbour) shifts every number by one factor, which the anchors give: the table
is put on today's scale. Where networks moved against each other, no factor mends it: it has to be profiled again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hwnas.errors import PredictorError
from hwnas.latency.measure import anchor_scale, measure_group, write_models
from hwnas.progress import Progress, silent
from hwnas.space import SearchSpace
from hwprof.client import AgentClient
from hwprof.devices import Device
from hwprof.table import LatencyTable
from hwprof.target import Plan
from hwprof.timing import geometric_mean

SESSIONS = 2
# Networks measured again beside the anchors: one group's worth.
REPEATED = 11
# A table holds while no anchor moved by more than this against the others ...
MAX_SHIFT = 0.05
# ... and the repeated networks differ, in the mean, by no more than this or twice the table's own noise floor.
MAX_CHANGE = 0.02


@dataclass(frozen=True)
class Check:
    """What was found: all numbers are fractions but `factor`, how many times slower the anchors are than in the table.

    `shifts` has each anchor's change against their mean, `change` the mean |now / then - 1| of `networks` repeated
    networks on the anchors' scale, `limit` what is allowed of it. `reason` says why the table does not hold; None if
    it does.
    """

    factor: float
    shifts: dict[str, float]
    networks: int
    change: float
    limit: float
    reason: str | None


def check_table(
    space: SearchSpace, table: LatencyTable, device: Device, *, plan: Plan | None = None, progress: Progress = silent
) -> Check:
    """Measure the table's anchors and some of its networks again.

    Raises TableError if this is not the table's machine and runtime, PredictorError for a table without anchors or if
    every measurement was refused, DeviceError if the device goes away.
    """
    scale = anchor_scale(table.anchors)
    known = [model for role in ("held-out", "fit") for model in table.models if model.role == role][:REPEATED]
    times: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    refused: set[str] = set()
    with AgentClient(device, table.target) as client, TemporaryDirectory(prefix="hwnas-check-") as folder:
        table.require_target(table.target, client.fingerprint)
        anchors = write_models(space, table, table.anchors, Path(folder))
        models = write_models(space, table, known, Path(folder))
        for session in range(SESSIONS):
            progress("anchors again", session, SESSIONS)
            if session:
                client.restart()
            group = measure_group(client, models, anchors, plan or Plan(), seed=session)
            for name, visits in group.anchors.items():
                times[name] += visits
            for result in group.results:
                if result.refused:
                    refused.add(result.refused)
                else:
                    ratios[result.name].append(result.ratio)
        progress("anchors again", SESSIONS, SESSIONS)
    if known and not ratios:
        raise PredictorError(
            f"all {len(known)} networks were refused: {'; '.join(sorted(refused)[:3])}. Quieten the machine, try again"
        )
    then = {f"{model.role} {model.name}": model.ms for model in table.models}
    moved = {name: float(np.median(values)) / then[name] for name, values in times.items()}
    factor = geometric_mean(list(moved.values()))
    shifts = {name.removeprefix("anchor "): ratio / factor - 1 for name, ratio in moved.items()}
    # An anchor that moved alone bends the scale, and shows in the repeated networks as well.
    changes = [abs(float(np.mean(values)) * scale / then[name] - 1) for name, values in ratios.items()]
    change = float(np.mean(changes)) if changes else 0.0
    noise = table.validation.noise_floor if table.validation else 0.0
    limit = max(MAX_CHANGE, 2 * noise)
    return Check(factor, shifts, len(changes), change, limit, _reason(shifts, change, limit))


def _reason(shifts: dict[str, float], change: float, limit: float) -> str | None:
    worst = max(shifts, key=lambda name: abs(shifts[name]))
    if abs(shifts[worst]) > MAX_SHIFT:
        return f"anchor {worst} moved by {shifts[worst]:+.1%} against the others (limit {MAX_SHIFT:.0%})"
    if change > limit:
        return f"its networks changed by {change:.1%} in the mean (limit {limit:.1%})"
    return None


def reanchored(table: LatencyTable, check: Check) -> LatencyTable:
    """The table on today's scale, with the check in its provenance. Raises PredictorError if it does not hold."""
    if check.reason is not None:
        raise PredictorError(f"the latency table does not hold any more: {check.reason}; profile again with --fresh")
    entry = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "factor": round(check.factor, 5),
        "change": round(check.change, 5),
        "networks": check.networks,
    }
    scaled = table.scaled(check.factor)
    before = table.provenance.get("checks")
    history = [*(before if isinstance(before, list) else []), entry]
    return replace(scaled, provenance={**table.provenance, "checks": history})
