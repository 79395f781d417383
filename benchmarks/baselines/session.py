"""What all baselines share: measuring graphs beside the table's anchors, and fits on the table's own networks.

Device time is what the agent spends in loading and timing, refused attempts included, as a table's `device_seconds`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import PredictorError
from hwnas.graphs import write_arch, write_trace
from hwnas.latency.measure import anchor_scale, measure_group, write_models
from hwnas.run import Run
from hwnas.space import IntMatrix, format_arch, parse_arch
from hwnas.trace import Trace
from hwprof.client import AgentClient
from hwprof.target import Plan

FloatVector = NDArray[np.float64]
FloatMatrix = NDArray[np.float64]
Writer = Callable[[Path], Path]  # from a path without suffix to the file written

ATTEMPTS = 3
# Models that are measured together, interleaved: whole networks, and parts of networks, of which the anchors' time
# would else be the most.
NETWORKS, PARTS = 8, 32


@dataclass(frozen=True)
class Baseline:
    """A method's predictions, (n,) ms, and the seconds of device time that it needed (measured networks included)."""

    name: str
    predicted_ms: FloatVector
    device_seconds: float


@dataclass(frozen=True)
class Session:
    """What one agent measured: name -> ms on the table's scale, or the reason of the last refusal."""

    what: str
    begin: str
    device_seconds: float
    ms: dict[str, float]
    refused: dict[str, str]
    state: dict[str, str]

    def require(self, names: list[str]) -> FloatVector:
        """(n,) ms. Raises PredictorError if any was refused."""
        missing = [self.refused[name] for name in names if name in self.refused]
        if missing:
            raise PredictorError(
                f"{len(missing)} of {len(names)} {self.what} were refused {ATTEMPTS} times: "
                f"{'; '.join(sorted(set(missing))[:2])}"
            )
        return np.array([self.ms[name] for name in names])


@dataclass
class Context:
    """What baselines may know: never the measurements of the networks that they predict.

    `unseen` (n, slots) are those networks, `train_networks` how many others may be measured to learn from, and
    `network_seconds` the device time of measuring one. `sessions` keeps what was measured.
    """

    seed: int
    unseen: IntMatrix
    train_networks: int
    network_seconds: float = 0.0
    plan: Plan = field(default_factory=Plan)
    sessions: list[Session] = field(default_factory=list)

    @property
    def parts_plan(self) -> Plan:
        """Times of parts are summed, so single ones may spread more, as in the profiles that a table is made of."""
        plan = self.plan
        return replace(
            plan,
            max_standard_error=max(0.05, plan.max_standard_error),
            max_spread=max(0.2, plan.max_spread),
        )


def measure(run: Run, context: Context, what: str, writers: Mapping[str, Writer], plan: Plan, group: int) -> Session:
    """Measure the graphs that the writers write beside the table's anchors, in an agent of their own.

    Refused ones are tried again, ATTEMPTS times in all. Raises TableError if this machine is not the table's.
    """
    scale, seconds, state = anchor_scale(run.table.anchors), 0.0, dict[str, str]()
    begin = datetime.now(timezone.utc).isoformat(timespec="seconds")
    ms: dict[str, float] = {}
    refused: dict[str, str] = {}
    with AgentClient(run.device, run.target) as client, tempfile.TemporaryDirectory(prefix="hwnas-benchmark-") as name:
        run.table.require_target(run.target, client.fingerprint)
        folder = Path(name)
        anchors = write_models(run.space, run.table, run.table.anchors, folder)
        for attempt in range(ATTEMPTS):
            pending = [name for name in writers if name not in ms]
            for start in range(0, len(pending), group):
                run.progress(what, len(ms), len(writers))
                # Written for one group at a time: sixty networks are more than a gigabyte.
                files = {name: writers[name](folder / str(n)) for n, name in enumerate(pending[start : start + group])}
                done = measure_group(client, files, anchors, plan, seed=attempt)
                seconds, state = seconds + done.seconds, done.state
                for result in done.results:
                    if result.refused:
                        refused[result.name] = result.refused
                    else:
                        ms[result.name] = result.ratio * scale
                        refused.pop(result.name, None)
        run.progress(what, len(ms), len(writers))
    session = Session(what, begin, seconds, ms, refused, state)
    context.sessions.append(session)
    return session


def measure_networks(run: Run, context: Context, what: str, archs: IntMatrix) -> Session:
    """Measure whole networks, (n, slots), by the names that `format_arch` gives them."""

    def writer(name: str) -> Writer:
        return lambda stem: write_arch(run.space, parse_arch(name), run.target, stem)

    writers = {format_arch(arch): writer(format_arch(arch)) for arch in archs}
    return measure(run, context, what, writers, context.plan, NETWORKS)


def measure_parts(run: Run, context: Context, what: str, traces: Mapping[str, Trace]) -> Session:
    """Measure parts of networks, each as a model of its own."""

    def writer(traced: Trace) -> Writer:
        return lambda stem: write_trace(traced, run.target, stem)

    writers = {name: writer(traced) for name, traced in traces.items()}
    return measure(run, context, what, writers, context.parts_plan, PARTS)


def fit_networks(run: Run) -> tuple[IntMatrix, FloatVector]:
    """The whole networks, (n, slots), that calibrated the table, and their (n,) measured ms.

    Raises PredictorError if there are fewer than three.
    """
    models = [model for model in run.table.models if model.role == "fit"]
    if len(models) < 3:
        raise PredictorError(f"the table has {len(models)} networks to fit with, at least 3 are needed")
    return np.array([parse_arch(model.name) for model in models]), np.array([model.ms for model in models])


def linear_fit(known: FloatMatrix, ms: FloatVector, wanted: FloatMatrix) -> FloatVector:
    """(n, features), (n,) ms, (m, features) -> (m,) ms: least squares, with intercept, of the relative error."""
    scale = np.maximum(np.abs(known).max(axis=0), 1e-12)
    design, asked = (np.column_stack([np.ones(len(matrix)), matrix / scale]) for matrix in (known, wanted))
    weights = np.linalg.lstsq(design / ms[:, None], np.ones(len(ms)), rcond=None)[0]
    return np.asarray(asked @ weights)


def corrected(
    run: Run, context: Context, name: str, part_ms: FloatVector, archs: IntMatrix, seconds: float
) -> list[Baseline]:
    """Sums of (blocks,) ms for each of archs, (n, slots): as they are, and after an affine fit on whole networks."""
    known, ms = fit_networks(run)
    sums, known_sums = (run.index.counts(networks) @ part_ms for networks in (archs, known))
    fitted = linear_fit(known_sums[:, None], ms, sums[:, None])
    return [
        Baseline(name, sums, seconds),
        Baseline(f"{name}, affine fit", fitted, seconds + len(ms) * context.network_seconds),
    ]
