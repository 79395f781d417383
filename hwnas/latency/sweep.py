"""`hwnas profile`: measure the blocks of a search space inside whole networks, and write the latency table.

What a block costs inside a fused network is not what it costs alone. So whole networks are profiled node by node (a
covering set in which every block of the space occurs, or a few random ones), each node's time is given to its block,
and whole networks measured without the profiler calibrate the result (`calibrate.py`).
Further networks, never fitted, give the error that is printed beside the noise floor: the same networks measured again
by a second session.

Every finished group of measurements is in a journal beside the table before the next one begins; a killed profile
goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from hwnas import __version__
from hwnas.errors import PredictorError
from hwnas.graphs import write_arch
from hwnas.latency.calibrate import calibrate
from hwnas.latency.covering import anchor_archs, covering_archs, distinct_archs, random_archs, spread_archs
from hwnas.latency.estimate import block_features, estimate, estimate_rows, with_unseen_operators
from hwnas.latency.fusion import FusionCounts, contextual
from hwnas.latency.index import BlockIndex
from hwnas.latency.measure import GROUP, anchor_scale, measure_group, split_evenly
from hwnas.latency.rows import measured_rows, node_counts, position_times
from hwnas.progress import Progress, silent
from hwnas.space import Arch, IntMatrix, SearchSpace, format_arch, parse_arch
from hwprof.client import AgentClient
from hwprof.devices import Device
from hwprof.journal import Journal, Record
from hwprof.table import LatencyTable, Model, Validation, write_table
from hwprof.target import Plan, Target, to_json

# A small space is covered by a few networks, but a block's time in two or three of them is little evidence.
LEAST_PROFILED = 16
# Anchors, and networks to fit and to validate unless the recipe says: (of a full table, of a quick one). Nine held-out
# networks are what an interval of 90% needs.
ANCHORS, FIT, HELD_OUT = (5, 3), (48, 16), (24, 9)
# Each kind of fusion is one more unknown to be learnt from the networks to fit.
FIT_PER_FUSION = 5
# Networks in which fusions that depend on the architecture are looked for.
LOOKED_AT = 256

# Phases of a profile, each in an agent process of its own. "again" is the second session, after everything else.
NODES, WHOLE, AGAIN = "profiled networks", "whole networks", "second session"


@dataclass(frozen=True)
class SweepConfig:
    """How much is measured.

    `networks` is 0 for a covering set, or the number of random networks of a quick table, whose missing rows are then
    estimated. `fit` networks calibrate the blocks, `held_out` networks validate (None: as many as such a table needs).
    A group of at most `group` is measured together, interleaved; a network that was refused is tried again, `attempts`
    times in all.
    """

    networks: int = 0
    fit: int | None = None
    held_out: int | None = None
    group: int = GROUP
    attempts: int = 5
    seed: int = 0
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        for name, least in (("networks", 0), ("fit", 3), ("held_out", 2), ("group", 1), ("attempts", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise PredictorError(f"profile.{name} must be at least {least}, got {value}")

    @property
    def node_plan(self) -> Plan:
        """Profiled runs are only summed per node, robustly, so fewer sweeps serve and more spread is borne."""
        plan = self.plan
        return replace(
            plan,
            sweeps=5,
            max_sweeps=9,
            max_runs=max(6, plan.min_runs),
            max_standard_error=max(0.05, plan.max_standard_error),
            max_spread=max(0.2, plan.max_spread),
        )


@dataclass(frozen=True)
class Selection:
    """The networks of a profile, (n, slots) each, and the fusions that depend on the architecture."""

    profiled: IntMatrix
    anchors: IntMatrix
    fit: IntMatrix
    held_out: IntMatrix
    fusions: tuple[str, ...]


def select_networks(space: SearchSpace, index: BlockIndex, config: SweepConfig) -> Selection:
    """Choose the networks by seed alone, so that a restarted profile chooses the same."""
    rng = np.random.default_rng(config.seed)
    quick = config.networks > 0
    anchors = anchor_archs(space, index, rng, ANCHORS[quick])
    fusions = contextual(space, space.sample(LOOKED_AT, rng))
    wanted = FIT[quick] + FIT_PER_FUSION * len(fusions) if config.fit is None else config.fit
    held_out = HELD_OUT[quick] if config.held_out is None else config.held_out
    # Half of them are spread from the smallest to the largest, where searches end; half are drawn uniformly.
    spread = distinct_archs(
        spread_archs(space, 10 * (wanted + held_out), rng), (wanted + held_out) // 2, exclude=anchors
    )
    taken = np.concatenate([anchors, spread])
    uniform = random_archs(space, wanted + held_out - len(spread), rng, exclude=taken)
    whole = rng.permutation(np.concatenate([spread, uniform]))
    fit = max(3, len(whole) * wanted // (wanted + held_out))
    taken = np.concatenate([anchors, whole])
    if quick:
        profiled = random_archs(space, config.networks, rng, exclude=taken)
        # What the random networks lack is estimated, except for operators that none of them holds.
        seen = np.asarray(index.counts(profiled).any(axis=0))
        needed = with_unseen_operators(block_features(index.blocks), seen)
        more = covering_archs(space, index, rng, seen=~needed)
    else:
        profiled = covering_archs(space, index, rng)
        fewer = max(0, LEAST_PROFILED - len(profiled))
        more = random_archs(space, fewer, rng, exclude=np.concatenate([taken, profiled]))
    profiled = np.concatenate([profiled, more])
    if len(whole) < 5 or len(profiled) == 0:
        raise PredictorError(
            f"{space.name} has too few networks ({len(whole)} besides the anchors) to fit and validate, "
            "or none is left to profile; enlarge the space, or profile the covering set (profile.networks = 0)"
        )
    return Selection(profiled, anchors, whole[:fit], whole[fit:], fusions)


def profile(
    space: SearchSpace,
    target: Target,
    device: Device,
    path: Path,
    config: SweepConfig,
    *,
    progress: Progress = silent,
) -> LatencyTable:
    """Measure the space on the device and write the table to `path`; goes on where a killed profile stopped.

    Raises PredictorError if too many measurements were refused (nothing measured is lost: call again), DeviceError if
    the device stays away.
    """
    index = BlockIndex(space)
    selection = select_networks(space, index, config)
    with _Session(space, target, device, path, config, selection.anchors, progress) as session:
        session.measure(NODES, selection.profiled, config.node_plan, nodes=True)
        session.require(NODES, selection.profiled, "profiled networks", spared=0.0)
        session.restart()
        session.measure(WHOLE, np.concatenate([selection.fit, selection.held_out]), config.plan)
        session.require(WHOLE, selection.fit, "networks to fit")
        session.require(WHOLE, selection.held_out, "networks to validate")
        session.restart()
        session.measure(AGAIN, selection.held_out, config.plan)
        session.require(AGAIN, selection.held_out, "networks of the second session")
        table = _make_table(session, index, selection)
        write_table(table, path)
        session.journal.delete()
    return table


class _Session:
    """The agent, the journal and what has been measured."""

    def __init__(
        self,
        space: SearchSpace,
        target: Target,
        device: Device,
        path: Path,
        config: SweepConfig,
        anchors: IntMatrix,
        progress: Progress,
    ) -> None:
        self.space, self.target, self.config, self.progress = space, target, config, progress
        self.anchors = [_arch(row) for row in anchors]
        self.client = AgentClient(device, target)
        self._path = path
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> _Session:
        with contextlib.ExitStack() as stack:
            self._graphs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hwnas-graphs-")))
            stack.enter_context(self.client)
            self.journal = Journal(
                self._path.with_suffix(".journal"),
                {
                    "space": {"name": self.space.name, **self.space.config},
                    "target": to_json(self.target),
                    "fingerprint": self.client.fingerprint,
                    "config": asdict(self.config),
                },
            )
            stack.callback(self.journal.close)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def restart(self) -> None:
        """A new agent process: another session as far as caches, memory layout and time go."""
        self.client.restart()

    def groups(self, phase: str) -> list[Record]:
        """The journal's groups of a phase."""
        return [record for record in self.journal.records if record["phase"] == phase]

    def accepted(self, phase: str) -> dict[Arch, Record]:
        """Architecture -> its accepted result."""
        results = [result for group in self.groups(phase) for result in group["results"]]
        return {parse_arch(result["name"]): result for result in results if not result["refused"]}

    def measure(self, phase: str, archs: IntMatrix, plan: Plan, *, nodes: bool = False) -> None:
        """Measure what the journal lacks of a phase, refused networks again in new company, up to the last attempt."""
        wanted = [_arch(row) for row in archs]
        for _ in range(self.config.attempts):
            pending = [arch for arch in wanted if arch not in self.accepted(phase)]
            for company in split_evenly(pending, self.config.group):
                self.progress(phase, len(wanted) - len(pending), len(wanted))
                self._measure_group(phase, company, plan, nodes)
                pending = [arch for arch in wanted if arch not in self.accepted(phase)]
                self.progress(phase, len(wanted) - len(pending), len(wanted))

    def require(self, phase: str, archs: IntMatrix, what: str, spared: float = 0.2) -> None:
        """Raise PredictorError, with the reasons, if more than a share of the networks were refused to the last.

        Every profiled network may hold the only sight of a block; of the others a few can be spared.
        """
        missing = {_arch(row) for row in archs} - self.accepted(phase).keys()
        if len(missing) > int(spared * len(archs)):
            reasons = {
                result["refused"] for group in self.groups(phase) for result in group["results"] if result["refused"]
            }
            raise PredictorError(
                f"{len(missing)} of {len(archs)} {what} were refused {self.config.attempts} times: "
                f"{'; '.join(sorted(reasons)[:3])}. Quieten the machine (other programs, power saving) and run the "
                "same command: it goes on from here"
            )

    def _measure_group(self, phase: str, archs: Sequence[Arch], plan: Plan, nodes: bool) -> None:
        # An anchor can be a member of the group too, so anchors go by names of their own.
        models = {format_arch(arch): self._graph(arch) for arch in archs}
        anchors = {f"anchor {format_arch(arch)}": self._graph(arch) for arch in self.anchors}
        seed = len(self.journal.records)
        group = measure_group(self.client, models, anchors, plan, nodes=nodes, seed=seed)
        self.journal.append({"phase": phase, **asdict(group)})
        for path in models.values():
            path.unlink()

    def _graph(self, arch: Arch) -> Path:
        digest = hashlib.sha256(format_arch(arch).encode()).hexdigest()[:16]  # an architecture can be a long name
        return write_arch(self.space, arch, self.target, self._graphs / digest)


def _make_table(session: _Session, index: BlockIndex, selection: Selection) -> LatencyTable:
    records = session.journal.records
    first_session = [record for record in records if record["phase"] != AGAIN]
    anchors = list(_anchor_models(session, first_session))
    scale = anchor_scale(anchors)
    profiled = session.accepted(NODES)
    archs = np.array(list(profiled), dtype=np.int64)
    times = [
        {position: ratio * scale for position, ratio in position_times(result["nodes"]).items()}
        for result in profiled.values()
    ]
    rows = measured_rows(index, archs, times)
    rows |= estimate_rows(index, rows)
    whole, again = session.accepted(WHOLE), session.accepted(AGAIN)

    def measured(archs: IntMatrix, role: str) -> Iterator[Model]:
        for arch in map(_arch, archs):
            if arch in whole:
                second = again[arch]["ratio"] * scale if arch in again else None
                yield Model(format_arch(arch), role, whole[arch]["ratio"] * scale, whole[arch]["spread"], second)

    fit, held_out = list(measured(selection.fit, "fit")), list(measured(selection.held_out, "held-out"))
    nodes = node_counts(index, archs, (result["nodes"] for result in profiled.values()))
    nodes |= estimate(index, nodes)[0]
    fusions = FusionCounts(index.space, selection.fusions)
    calibration = calibrate(
        np.array([rows[key].ms for key in index.keys]),
        np.array([nodes[key] for key in index.keys]),
        block_features(index.blocks),
        index.counts(_matrix(fit)),
        np.array([model.ms for model in fit]),
        fusions(_matrix(fit)),
    )
    predicted_ms = calibration.predict_ms(index.counts(_matrix(held_out)), fusions(_matrix(held_out)))
    return LatencyTable(
        target=session.target,
        fingerprint=session.client.fingerprint,
        provenance=_provenance(session, records, len(archs)),
        intercept_ms=calibration.intercept_ms,
        models=(*anchors, *fit, *held_out),
        validation=_validate(predicted_ms, held_out),
        rows={
            key: replace(rows[key], ms=float(ms), profiled_ms=rows[key].ms)
            for key, ms in zip(index.keys, calibration.block_ms, strict=True)
        },
        fusion_ms=dict(zip(selection.fusions, map(float, calibration.fusion_ms), strict=True)),
    )


def _validate(predicted_ms: Any, held_out: Sequence[Model]) -> Validation:
    measured = np.array([model.ms for model in held_out])
    errors = np.abs(predicted_ms / measured - 1)
    twice = [model.again_ms / model.ms - 1 for model in held_out if model.again_ms is not None]
    return Validation(len(held_out), float(errors.mean()), float(errors.max()), float(np.mean(np.abs(twice))))


def _anchor_models(session: _Session, records: Sequence[Record]) -> Iterator[Model]:
    for arch in session.anchors:
        name = format_arch(arch)
        times = np.array([ms for record in records for ms in record["anchors"][f"anchor {name}"]])
        yield Model(
            name, "anchor", float(np.median(times)), float(1.4826 * np.median(np.abs(times / np.median(times) - 1)))
        )


def _provenance(session: _Session, records: Sequence[Record], profiled: int) -> dict[str, Any]:
    drift = [float(np.median(record["anchor_ms"])) for record in records]
    refusals = [
        f"{record['phase']}, {result['name']}: {result['refused']}"
        for record in records
        for result in record["results"]
        if result["refused"]
    ]
    return {
        "hwnas": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "space": {"name": session.space.name, **session.space.config},
        "profiled_networks": profiled,
        "device_seconds": round(sum(record["seconds"] for record in records), 1),
        "refused": len(refusals),
        "refusals": refusals,
        "anchor_range": round(max(drift) / min(drift) - 1, 4),
        "stolen_seconds": round(sum(record["stolen_seconds"] for record in records), 2),
        "involuntary_switches": sum(record["involuntary_switches"] for record in records),
        "state": records[-1]["state"],
    }


def _matrix(models: Sequence[Model]) -> IntMatrix:
    return np.array([parse_arch(model.name) for model in models], dtype=np.int64)


def _arch(row: Any) -> Arch:
    return tuple(int(value) for value in row)
