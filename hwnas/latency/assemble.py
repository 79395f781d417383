"""From a profile's measurements to its latency table: rows, calibration, validation, provenance."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from hwnas import __version__
from hwnas.latency.calibrate import Calibration, FloatVector, calibrate
from hwnas.latency.estimate import block_features, estimate, estimate_rows
from hwnas.latency.fusion import FusionCounts
from hwnas.latency.index import BlockIndex
from hwnas.latency.measure import anchor_scale
from hwnas.latency.rows import measured_rows, node_counts, position_times
from hwnas.latency.selection import Selection
from hwnas.latency.session import AGAIN, BLOCKS, NODES, WHOLE, Session, anchor_name
from hwnas.space import IntMatrix, format_arch, parse_arch, rows_of
from hwprof.journal import Record
from hwprof.table import LatencyTable, Model, Row, Validation


@dataclass(frozen=True)
class Draft:
    """What a session has measured so far, calibrated: rows by key, and the networks that were used."""

    rows: dict[str, Row]
    calibration: Calibration
    anchors: list[Model]
    fit: list[Model]
    scale: float


def draft(session: Session, index: BlockIndex, selection: Selection) -> Draft:
    """The rows of a session's profiled networks, calibrated with those of the networks to fit that are measured."""
    anchors = list(_anchor_models(session, _first_session(session)))
    scale = anchor_scale(anchors)
    rows, nodes = _block_rows(session, index, scale)
    rows |= estimate_rows(index, rows)
    nodes |= estimate(index, nodes)[0]
    fit = list(_models(session, selection.fit, "fit", scale))
    calibration = calibrate(
        np.array([rows[key].ms for key in index.keys]),
        np.array([nodes[key] for key in index.keys]),
        block_features(index.blocks),
        index.counts(_matrix(index, fit)),
        np.array([model.ms for model in fit]),
        FusionCounts(index.space, selection.fusions)(_matrix(index, fit)),
    )
    return Draft(rows, calibration, anchors, fit, scale)


def make_table(session: Session, index: BlockIndex, selection: Selection) -> LatencyTable:
    """The table of what a session measured of the selected networks, calibrated and validated."""
    found = draft(session, index, selection)
    calibration = found.calibration
    held_out = list(_models(session, selection.held_out, "held-out", found.scale))
    searched = list(_models(session, selection.searched, "searched", found.scale))
    fusions = FusionCounts(index.space, selection.fusions)

    def errors(models: Sequence[Model]) -> FloatVector:
        archs = _matrix(index, models)
        predicted_ms = calibration.predict_ms(index.counts(archs), fusions(archs))
        return np.abs(predicted_ms / [model.ms for model in models] - 1)

    return LatencyTable(
        target=session.target,
        fingerprint=session.farm.fingerprint,
        provenance=_provenance(session, session.journal.records),
        intercept_ms=calibration.intercept_ms,
        models=(*found.anchors, *found.fit, *held_out, *searched),
        validation=_validate(errors(held_out), held_out, errors(searched)),
        rows={
            key: replace(found.rows[key], ms=float(ms), profiled_ms=found.rows[key].ms)
            for key, ms in zip(index.keys, calibration.block_ms, strict=True)
        },
        fusion_ms=dict(zip(selection.fusions, map(float, calibration.fusion_ms), strict=True)),
    )


def _first_session(session: Session) -> list[Record]:
    return [record for record in session.journal.records if record["phase"] != AGAIN]


def _models(session: Session, archs: IntMatrix, role: str, scale: float) -> Iterator[Model]:
    """Those of the networks that were measured."""
    whole, again = session.accepted_archs(WHOLE), session.accepted_archs(AGAIN)
    for arch in rows_of(archs):
        if arch in whole:
            second = again[arch]["ratio"] * scale if arch in again else None
            yield Model(format_arch(arch), role, whole[arch]["ratio"] * scale, whole[arch]["spread"], second)


def _block_rows(session: Session, index: BlockIndex, scale: float) -> tuple[dict[str, Row], dict[str, float]]:
    """Measured rows, and how often each paid what a profiler adds per node, or an inference when measured alone."""
    alone = session.accepted(BLOCKS)
    if alone:
        rows = {key: Row(result["ratio"] * scale, min(result["spread"], 1.0), 1) for key, result in alone.items()}
        return rows, dict.fromkeys(rows, 1.0)
    profiled = session.accepted_archs(NODES)
    archs = np.array(list(profiled), dtype=np.int64)
    times = [
        {position: ratio * scale for position, ratio in position_times(result["nodes"]).items()}
        for result in profiled.values()
    ]
    return (
        measured_rows(index, archs, times),
        node_counts(index, archs, (result["nodes"] for result in profiled.values())),
    )


def _validate(errors: FloatVector, held_out: Sequence[Model], searched: FloatVector) -> Validation:
    twice = [model.again_ms / model.ms - 1 for model in held_out if model.again_ms is not None]
    return Validation(
        models=len(held_out),
        mean_error=float(errors.mean()),
        max_error=float(errors.max()),
        noise_floor=float(np.mean(np.abs(twice))),
        searched_error=float(searched.mean()) if len(searched) else None,
    )


def _anchor_models(session: Session, records: Sequence[Record]) -> Iterator[Model]:
    for arch in session.anchors:
        times = np.array([ms for record in records for ms in record["anchors"][anchor_name(arch)]])
        middle = float(np.median(times))
        yield Model(format_arch(arch), "anchor", middle, float(1.4826 * np.median(np.abs(times / middle - 1))))


def _provenance(session: Session, records: Sequence[Record]) -> dict[str, Any]:
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
        "profiled_networks": len(session.accepted(NODES)),
        "profiled_blocks": len(session.accepted(BLOCKS)),
        "devices": sorted({record["device"] for record in records if "device" in record}),
        "device_seconds": round(sum(record["seconds"] for record in records), 1),
        "refused": len(refusals),
        "refusals": refusals,
        "anchor_range": round(max(drift) / min(drift) - 1, 4),
        "stolen_seconds": round(sum(record["stolen_seconds"] for record in records), 2),
        "involuntary_switches": sum(record["involuntary_switches"] for record in records),
        "state": records[-1]["state"],
        "gpu_slowed": sorted({record["state"].get("gpu_slowed", "no") for record in records} - {"no"}),
    }


def _matrix(index: BlockIndex, models: Sequence[Model]) -> IntMatrix:
    archs = np.array([parse_arch(model.name) for model in models], dtype=np.int64)
    return archs.reshape(len(models), len(index.space.slots))
