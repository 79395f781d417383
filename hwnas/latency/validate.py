"""`hwnas validate`: is what a latency table predicts what its target takes today?

Networks of the space that the table has never seen are measured beside its anchors, and once more in a second session
for today's noise floor. The worst are then profiled block by block. Every finished group of measurements is in a
journal before the next one begins; a killed validation goes on from there.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas import __version__
from hwnas.errors import PredictorError
from hwnas.latency.agreement import agreement, beyond_noise, coverage, judge, noise_sd
from hwnas.latency.blame import block_errors, profiler_shift, suspects, systematic_errors
from hwnas.latency.index import BlockIndex
from hwnas.latency.measure import Measured
from hwnas.latency.predict import LatencyPredictor
from hwnas.latency.rehearsal import searched_archs
from hwnas.latency.unseen import unseen_archs
from hwnas.latency.unseen_session import AGAIN, FIRST, Session, ValidateConfig
from hwnas.progress import Progress, silent
from hwnas.space import IntMatrix, SearchSpace, format_arch, parse_arch
from hwnas.validation import SCHEMA, VERSION, Coverage, Drawn, NetworkResult, Promise, TableValidation, WorstCase
from hwprof.devices import Device
from hwprof.files import write_atomic
from hwprof.table import HELD_OUT, LatencyTable

FloatVector = NDArray[np.float64]

INTERVAL, UPPER = 0.9, 0.95
RESULT = "validation.json"


def validate(
    space: SearchSpace,
    table: LatencyTable,
    predictor: LatencyPredictor,
    device: Device,
    folder: Path,
    config: ValidateConfig,
    *,
    source: str = "",
    publish: Callable[[TableValidation], None] = lambda result: None,
    progress: Progress = silent,
) -> TableValidation:
    """Measure networks that the table has not seen, judge it by them, and write validation.json into the folder.

    `source` is where the table is from. A killed validation goes on from the journal in the folder, which is deleted
    once the result is written and `publish` (which may write more of it) has returned. Raises TableError if this
    machine is not the table's, DeviceError if the device goes away (call again: nothing measured is lost),
    PredictorError if the table has no anchors or has seen the whole space.
    """
    if not table.anchors:
        raise PredictorError(
            "this latency table has no anchors (imported tables have none), so nothing measured here stands on its "
            "scale; validate a table that was measured: hwnas profile RECIPE"
        )
    index = BlockIndex(space)
    archs, drawn = unseen_archs(
        space,
        table,
        config.networks,
        config.seed,
        # what an older table does not know of, it does not promise
        partial(_searched, space, index, predictor) if _searched_error(table) is not None else None,
    )
    networks, notes = _predictions(space, predictor, archs, drawn)
    if len(networks) < config.networks:
        notes.append(f"the space has only {len(networks)} networks that the table has not seen; all were taken")
    with Session(space, table, device, folder, config, progress) as session:
        first = session.measure(FIRST, networks)
        networks = [_with_first(network, first[network.arch]) for network in networks]
        if config.again:
            again = session.measure(AGAIN, [network for network in networks if network.measured_ms is not None])
            networks = [_with_second(network, again.get(network.arch)) for network in networks]
        result = _result(session, index, networks, notes, source)
        write_atomic(folder / RESULT, result.to_json())
        publish(result)
        session.journal.delete()
    return result


def _searched(
    space: SearchSpace,
    index: BlockIndex,
    predictor: LatencyPredictor,
    n: int,
    rng: np.random.Generator,
    known: IntMatrix,
) -> IntMatrix:
    return searched_archs(space, index, predictor.predict_ms, n, rng, exclude=known)


def _searched_error(table: LatencyTable) -> float | None:
    return None if table.validation is None else table.validation.searched_error


def _promise(table: LatencyTable, networks: Sequence[NetworkResult]) -> Promise | None:
    """What the table promises of networks drawn as these were."""
    found = table.validation
    if found is None:
        return None
    share = float(np.mean([network.drawn == "searched" for network in networks])) if networks else 0.0
    error = (1 - share) * found.mean_error + share * (found.searched_error or 0.0)
    return Promise(found.models, error, found.noise_floor)


def _predictions(
    space: SearchSpace, predictor: LatencyPredictor, archs: IntMatrix, drawn: Sequence[Drawn]
) -> tuple[list[NetworkResult], list[str]]:
    """The networks with what is predicted of them, and what the table cannot say."""
    predicted = predictor.predict_ms(archs)
    low, high, upper = ([None] * len(archs) for _ in range(3))
    notes = []
    try:
        low, high = (bound.tolist() for bound in predictor.interval_ms(archs, INTERVAL))
    except PredictorError as error:
        notes.append(f"no {INTERVAL:.0%} interval: {error}")
    try:
        upper = predictor.upper_ms(archs, UPPER).tolist()
    except PredictorError as error:
        notes.append(f"no {UPPER:.0%} upper bound: {error}")
    networks = [
        NetworkResult(
            arch=format_arch(arch),
            choice=space.describe(tuple(arch)),
            drawn=drawn[number],
            predicted_ms=float(predicted[number]),
            low_ms=low[number],
            high_ms=high[number],
            upper_ms=upper[number],
            measured_ms=None,
            measured_low_ms=None,
            measured_high_ms=None,
            refused=None,
            again_ms=None,
            again_refused=None,
            anchor_drift=None,
        )
        for number, arch in enumerate(archs)
    ]
    return networks, notes


def _with_first(network: NetworkResult, found: Measured) -> NetworkResult:
    if found.refused:
        return replace(network, refused=found.refused)
    return replace(
        network,
        measured_ms=found.ms,
        measured_low_ms=found.low_ms,
        measured_high_ms=found.high_ms,
        anchor_drift=found.anchor_drift,
    )


def _with_second(network: NetworkResult, found: Measured | None) -> NetworkResult:
    if found is None:  # refused at first
        return network
    return replace(network, again_ms=None if found.refused else found.ms, again_refused=found.refused)


def _result(
    session: Session, index: BlockIndex, networks: Sequence[NetworkResult], notes: Sequence[str], source: str
) -> TableValidation:
    table, config = session.table, session.config
    measured = [network for network in networks if network.measured_ms is not None]
    promise = _promise(table, measured)
    predicted_ms = np.array([network.predicted_ms for network in measured])
    measured_ms = np.array([network.measured_ms for network in measured], dtype=np.float64)
    again_ms = [network.again_ms for network in measured]
    found = agreement(predicted_ms, measured_ms, again_ms, np.random.default_rng([config.seed, 3]))
    archs = np.array([parse_arch(network.arch) for network in measured], dtype=np.int64)
    archs = archs.reshape(-1, len(session.space.slots))
    systematic = systematic_errors(
        predicted_ms / measured_ms - 1,
        suspects(index, table, archs, predicted_ms),
        np.random.default_rng([config.seed, 4]),
    )
    left = beyond_noise(predicted_ms, measured_ms, again_ms, noise_sd(measured_ms, again_ms, promise))
    by_draw: dict[Drawn, float] = {}
    for network in measured:
        same = [abs(one.error or 0.0) for one in measured if one.drawn == network.drawn]
        by_draw[network.drawn] = float(np.mean(same))
    worst = _worst(session, index, measured, left)
    drifts = [network.anchor_drift for network in measured if network.anchor_drift is not None]
    anchor_drift = float(np.median(drifts)) if drifts else None
    judgement, verdict = judge(found, promise, by_draw, anchor_drift)
    return TableValidation(
        schema=SCHEMA,
        version=VERSION,
        hwnas=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        table=source,
        table_created=str(table.provenance.get("created", "")),
        rows=len(table.rows),
        estimated_rows=sum(row.origin == "estimated" for row in table.rows.values()),
        target={**asdict(table.target), **table.fingerprint},
        space={"name": session.space.name, **session.space.config},
        seed=config.seed,
        seconds=round(session.seconds, 1),
        promise=promise,
        networks=tuple(networks),
        agreement=found,
        by_draw=by_draw,
        interval=_coverage(measured, table, INTERVAL),
        upper=_coverage(measured, table, UPPER),
        anchor_drift=anchor_drift,
        worst=worst,
        systematic=systematic,
        judgement=judgement,
        verdict=verdict,
        notes=(*notes, *_refusals(networks)),
    )


def _coverage(measured: Sequence[NetworkResult], table: LatencyTable, nominal: float) -> Coverage | None:
    """Of the two-sided interval, or of the upper bound; None where the table gives none or nothing was measured."""
    bounds = [
        (network.low_ms, network.high_ms) if nominal == INTERVAL else (0.0, network.upper_ms) for network in measured
    ]
    inside = [
        low <= network.measured_ms <= high
        for network, (low, high) in zip(measured, bounds, strict=True)
        if network.measured_ms is not None and low is not None and high is not None
    ]
    calibrated = sum(model.role in HELD_OUT for model in table.models)
    return coverage(np.array(inside, dtype=bool), nominal, calibrated)


def _worst(
    session: Session, index: BlockIndex, measured: Sequence[NetworkResult], left: FloatVector
) -> tuple[WorstCase, ...]:
    """The networks with the largest errors beyond the noise, profiled; none where noise explains all."""
    order = [int(number) for number in np.argsort(-left, kind="stable")[: session.config.worst] if left[number] > 0]
    profiled = session.profile([measured[number].arch for number in order])
    known = {parse_arch(anchor.name): profiled.get(anchor.name) for anchor in session.table.anchors}
    shift = profiler_shift(
        index, session.table, {arch: times for arch, times in known.items() if isinstance(times, dict)}
    )
    worst = []
    for number in order:
        network = measured[number]
        if network.mean_ms is None:
            continue
        error, times = network.predicted_ms / network.mean_ms - 1, profiled[network.arch]
        case = WorstCase(
            network.arch, network.predicted_ms, network.mean_ms, error, float(left[number]), None, (), None
        )
        if isinstance(times, str):
            worst.append(replace(case, not_profiled=times))
            continue
        error_ms = network.predicted_ms - network.mean_ms
        blocks, explained = block_errors(index, session.table, parse_arch(network.arch), times, shift, error_ms)
        worst.append(replace(case, blocks=blocks, explained=explained))
    return tuple(worst)


def _refusals(networks: Sequence[NetworkResult]) -> list[str]:
    """What was refused, counted by reason."""
    notes = []
    for what, reasons in (
        ("not measured", [network.refused for network in networks]),
        ("not measured a second time", [network.again_refused for network in networks]),
    ):
        notes += [f"{count} {what}: {reason}" for reason, count in Counter(filter(None, reasons)).items()]
    return notes
