"""What a run has to say of its networks: report rows, model cards, and the summary that the report is made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from hwnas import __version__
from hwnas.card import Interval
from hwnas.carding import card_of, predicted_interval
from hwnas.errors import PredictorError
from hwnas.export.native import is_native, native_name
from hwnas.export.verify import Verification
from hwnas.latency.measure import Measured
from hwnas.latency.worst import profile_networks
from hwnas.precisions import Member, mixed_ms
from hwnas.report.html import write_html
from hwnas.report.summary import LATENCY_LIMIT, Candidate, NetworkRow, RunSummary, TableFacts
from hwnas.run import Run, score_objectives, score_study, train_study
from hwnas.scored import ranked, scores_of, without_vote
from hwnas.search.study import recorded
from hwnas.space import Arch, format_arch, parse_arch
from hwprof.errors import HwprofError
from hwprof.files import write_atomic
from hwprof.lock import Lock
from hwprof.target import Target

# Of the interval of a measurement, 1.96 standard errors to each side.
MEASURED_CONFIDENCE = 0.95


def export_folder(run: Run) -> Path:
    """The folder of the front's files."""
    return run.folder / "export"


def export_lock(run: Run) -> Lock:
    """One export of a run at a time: a folder that is replaced would lose what another writes to it meanwhile.

    Raises BusyError while another process exports.
    """
    advice = "it exports the same run: wait until it ends, or end it, then run this again"
    return Lock(run.folder / "export.lock", advice)


def onnx_file(run: Run, arch: Arch, folder: Path | None = None) -> Path:
    """Where a network of the front is exported to as ONNX; `folder` is that of files not yet shown."""
    return (folder or export_folder(run)) / f"{run.network_name(arch)}.onnx"


def exported_file(run: Run, arch: Arch, folder: Path | None = None) -> Path:
    """The file that the target runs, and is measured with: the ONNX file, or one of its own beside it."""
    if not is_native(run.target):
        return onnx_file(run, arch, folder)
    return (folder or export_folder(run)) / native_name(run.network_name(arch), run.target)


def on_target(run: Run, target: Target) -> Run:
    """The run as a recipe for the target would have it: one of the run's own precisions, or with a table of its own."""
    if target.precision in run.precisions and run.at(target.precision).target == target:
        return run.at(target.precision)
    section = run.recipe.target.model_copy(update=asdict(target))
    profile = run.recipe.profile.model_copy(update={"table": None})
    recipe = run.recipe.model_copy(update={"target": section, "profile": profile})
    return Run(recipe, run.recipe_text, progress=run.progress, whole=run)


def prediction(part: Run, arch: Arch, in_float: Sequence[str], plain: Run) -> tuple[float, Interval]:
    """Predicted ms of a network's file, and the interval; blocks at positions `in_float` take what they do in `plain`.

    Raises PredictorError for blocks that a table has no rows for, HwprofError where there is no table.
    """
    matrix = np.array([arch])
    whole_ms, ms = float(part.predictor.predict_ms(matrix)[0]), mixed_ms(part, plain, arch, in_float)
    # what the prediction may be off by stays in proportion
    low_ms, high_ms = (None if bound is None else bound * (ms / whole_ms) for bound in predicted_interval(part, matrix))
    return ms, (low_ms, high_ms)


def network_row(
    run: Run,
    arch: Arch,
    verified: Verification,
    measured: Measured | str,
    member: Member | None = None,
    *,
    foreseen: bool = True,
    folder: Path | None = None,
) -> NetworkRow:
    """The report's row of an exported network; `measured` may be the reason why it was not.

    `member` is what it is on the front, if its precision is one of several or some of its blocks are in float;
    `foreseen` is False where its prediction does not know of these, so that there is no interval. The file is in the
    `folder`, if it is not shown yet.
    """
    matrix = np.array([arch])
    predicted_ms = float(run.predictor.predict_ms(matrix)[0])
    bounds = predicted_interval(run, matrix) if foreseen else (None, None)
    if member is None:
        member = Member(arch, run.target.precision, recorded(train_study(run))[arch].values[0], predicted_ms)
    # blocks in float change the prediction; what it may be off by stays in proportion
    low_ms, high_ms = (None if bound is None else bound * (member.latency_ms / predicted_ms) for bound in bounds)
    refused = measured if isinstance(measured, str) else measured.refused
    found = None if isinstance(measured, str) or measured.refused else measured
    limit = run.recipe.search.latency
    blocks = run.space.blocks(arch)
    file = exported_file(run, arch, folder)
    return NetworkRow(
        name=run.label(arch),
        arch=format_arch(arch),
        choice=run.space.describe(arch),
        accuracy=verified.accuracy,
        valid_accuracy=member.accuracy,
        predicted_ms=member.latency_ms,
        predicted_low_ms=low_ms,
        predicted_high_ms=high_ms,
        measured_ms=found.ms if found else None,
        measured_low_ms=found.low_ms if found else None,
        measured_high_ms=found.high_ms if found else None,
        refused=refused,
        macs=sum(block.macs for block in blocks),
        params=sum(block.params for block in blocks),
        file=exported_file(run, arch).relative_to(run.folder).as_posix(),
        size_bytes=file.stat().st_size,
        within_limit=None if found is None or limit is None else found.ms <= limit,
        precision=member.precision,
        in_float=member.in_float,
        within_drop=member.within_drop,
    )


def profiled_blocks(run: Run, archs: Sequence[Arch]) -> dict[Arch, dict[int, float]]:
    """Architecture -> position -> ms of its blocks, profiled on the target now; those that cannot be are left out."""
    try:
        found = profile_networks(archs, run.space, run.table, run.device, run.plan)
    except (HwprofError, PredictorError):  # no such device here, or a table without anchors
        return {}
    return {arch: times for arch, times in found.items() if isinstance(times, dict)}


def network_card(run: Run, arch: Arch, profiled: Mapping[int, float] | None = None) -> dict[str, Any]:
    """What a stranger needs to use a network's file, to know where it comes from and to train it again (hwnas.card).

    `profiled`: position -> ms of its blocks, measured in this network; else they are the latency table's.
    """
    return card_of(run, arch, profiled).facts()


def model_card(
    run: Run, row: NetworkRow, verified: Verification, profiled: Mapping[int, float] | None = None
) -> dict[str, Any]:
    """The card of a file that was measured on the run's target."""
    return {
        **network_card(run, parse_arch(row.arch), profiled),
        "predicted_ms": row.predicted_ms,
        "predicted_interval_ms": [row.predicted_low_ms, row.predicted_high_ms],
        "in_float": list(row.in_float),
        "max_drop": run.recipe.quantise.max_drop,
        "within_drop": row.within_drop,
        "accuracy_percent": row.accuracy,
        "max_logit_difference": verified.max_difference,
        "measured_ms": row.measured_ms,
        "measured_interval_ms": [row.measured_low_ms, row.measured_high_ms],
        "measured_confidence": MEASURED_CONFIDENCE,
        "not_measured": row.refused,
        "outside_interval": row.outside_interval,
        "latency_limit_ms": run.recipe.search.latency,
        "within_limit": row.within_limit,
        "deployable": row.verdict.deployable,
        "not_deployable": row.verdict.reason,
    }


def drift_warnings(measured: Iterable[Measured | str]) -> list[str]:
    """What to say if the machine no longer runs as it did when its table was made."""
    drifts = [result.anchor_drift for result in measured if isinstance(result, Measured)]
    worst = max(drifts, key=abs, default=0.0)
    if abs(worst) <= 0.1:
        return []
    return [
        f"the anchors run {worst:+.0%} beside the time they had when the table was made; latencies are given on the "
        "table's scale, as this machine ran then"
    ]


def by_measurement(rows: Sequence[NetworkRow]) -> tuple[list[NetworkRow], list[str]]:
    """The rows by measured latency, fastest first, and what the measurements say against the predicted front.

    A row that was not measured stands where it was predicted. A network that another one beats in both accuracy (by
    which the search went) and measured latency stays, with a word on it: the difference may be noise.
    """
    ordered = sorted(rows, key=lambda row: row.predicted_ms if row.measured_ms is None else row.measured_ms)
    notes = []
    for place, row in enumerate(ordered):
        better = [
            other
            for other in ordered[:place]
            if other.valid_accuracy >= row.valid_accuracy and None not in (other.measured_ms, row.measured_ms)
        ]
        if better:
            notes.append(
                f"as measured, {row.name} is not on the front: {better[-1].name} is faster and no less accurate on the "
                "validation images"
            )
    return ordered, notes


def write_summary(run: Run, rows: Sequence[NetworkRow], warnings: Sequence[str]) -> RunSummary:
    """Write summary.json and report.html."""
    validation = run.table.validation
    limit = run.recipe.search.latency
    summary = RunSummary(
        name=run.recipe.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
        space={"name": run.space.name, **run.space.config},
        target={**asdict(run.target), "precision": ", ".join(run.precisions), **run.table.fingerprint},
        limits={} if limit is None else {LATENCY_LIMIT: limit},
        networks=tuple(rows),
        candidates=tuple(_candidates(run)),
        without_vote=without_vote(run),
        table=TableFacts(
            path=str(run.table_path),
            rows=len(run.table.rows),
            held_out=validation.models if validation else None,
            mean_error=validation.mean_error if validation else None,
            max_error=validation.max_error if validation else None,
            noise_floor=validation.noise_floor if validation else None,
            searched_error=validation.searched_error if validation else None,
        ),
        seconds=run.seconds(),
        recipe=run.recipe_text,
        warnings=tuple(warnings),
    )
    write_atomic(run.folder / "summary.json", summary.to_json())
    write_html(summary, run.folder / "report.html")
    return summary


def _candidates(run: Run) -> Iterator[Candidate]:
    trained, scored = recorded(train_study(run)), recorded(score_study(run))
    archs, values = ranked(run)
    # A trial's own latency is what was searched, which with a confidence is the upper bound.
    predicted = run.predictor.predict_ms(np.array(archs, dtype=np.int64).reshape(-1, len(run.space.slots)))
    name = score_objectives(run)[0].name
    for arch, value, ms in zip(archs, values[:, 0], predicted, strict=True):
        accuracy = trained[arch].values[0] if arch in trained else None
        scores = {each: one for each, one in scores_of(run, scored[arch]).items() if one is not None}
        yield Candidate(format_arch(arch), {name: float(value)} | scores, float(ms), accuracy)
    for arch, trial in trained.items():
        if arch not in scored:
            yield Candidate(format_arch(arch), {}, trial.values[1], trial.values[0])
