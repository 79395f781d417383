"""The three stages: profile, search (with training), export. Each starts from what the one before left on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch import Tensor, nn

from hwnas import __version__
from hwnas.errors import DataError, RunError
from hwnas.export.card import metadata_of, write_card
from hwnas.export.onnx import export_onnx, write_onnx
from hwnas.export.verify import Verification, verify_onnx
from hwnas.latency.measure import Measured, measure_files
from hwnas.latency.sweep import SweepConfig, profile
from hwnas.report.html import write_html
from hwnas.report.summary import LATENCY_LIMIT, Candidate, NetworkRow, RunSummary, TableFacts
from hwnas.run import Run
from hwnas.search.assisted import assisted_search, choose_finalists
from hwnas.search.pareto import nondominated
from hwnas.search.problem import Objective, to_losses
from hwnas.search.study import ask_arch, failed, make_sampler, open_study, record_failure, record_trial, recorded
from hwnas.space import Arch, format_arch
from hwnas.train.loop import TrainConfig, TrainingFailed, train
from hwnas.train.preprocess import normalise
from hwnas.zeroshot import compute_scores
from hwprof.errors import HwprofError
from hwprof.files import write_atomic
from hwprof.table import LatencyTable, read_table

CONFIDENCE = 0.9
SURROGATE = "surrogate"


@dataclass(frozen=True)
class ProfileResult:
    """A table, where it is, and whether it was there already."""

    path: Path
    table: LatencyTable
    reused: bool


def profile_stage(run: Run, *, fresh: bool = False) -> ProfileResult:
    """Measure the latency table of the recipe's target and space, unless it is there already."""
    section = run.recipe.profile
    if section.table is not None:
        return ProfileResult(run.table_path, run.table, True)
    path = run.own_table_path
    if path.exists() and not fresh:
        return ProfileResult(path, read_table(path), True)
    config = SweepConfig(section.networks, section.fit, section.held_out, seed=run.recipe.seed)
    table = profile(run.space, run.target, run.device, path, config, progress=run.progress)
    return ProfileResult(path, table, False)


def search_stage(run: Run) -> list[Arch]:
    """Score architectures, train the finalists, and give the front of the trained, fastest first.

    Everything evaluated is a trial of the run's journal; what is recorded there is not evaluated again. Raises
    InfeasibleError if nothing keeps the latency limit, RunError if every training failed.
    """
    run.open_folder()
    _check_data(run)
    with run.timed("score"):
        finalists = _finalists(run)
    with run.timed("train"):
        for number, arch in enumerate(finalists):
            _train(run, arch, f"train network {number + 1} of {len(finalists)}")
    return trained_front(run)


def _check_data(run: Run) -> None:
    """Raise DataError unless the space's networks take the data's images and tell its classes apart."""
    channels = run.space.largest_input[0]
    if (channels, run.space.num_classes) != (run.data.channels, run.data.num_classes):
        raise DataError(
            f"the space has {channels} channels and {run.space.num_classes} classes, the data {run.data.name} has "
            f"{run.data.channels} and {run.data.num_classes}: leave space.in_channels and space.num_classes out of the "
            "recipe, then they are the data's"
        )


def trained_front(run: Run) -> list[Arch]:
    """The trained architectures that none beats in both validation accuracy and predicted latency, fastest first."""
    study = train_study(run)
    trials = recorded(study)
    if not trials:
        reasons = "; ".join(sorted(set(failed(study).values()))) or "nothing was trained"
        raise RunError(f"{run.folder} holds no trained network ({reasons}); run: hwnas search RECIPE")
    archs = list(trials)
    values = np.array([trials[arch].values for arch in archs])
    front = [archs[row] for row in np.flatnonzero(nondominated(to_losses(values, train_objectives(run))))]
    return sorted(front, key=lambda arch: trials[arch].values[1])


def train_objectives(run: Run) -> tuple[Objective, Objective]:
    """What trained networks are compared by."""
    return Objective("accuracy", "%", "maximize"), _latency_objective(run)


def score_objectives(run: Run) -> tuple[Objective, Objective]:
    """What untrained networks are compared by."""
    return Objective(run.recipe.search.score, "", "maximize"), _latency_objective(run)


def _latency_objective(run: Run) -> Objective:
    return Objective("latency", "ms", "minimize", run.recipe.search.latency)


def score_study(run: Run) -> optuna.Study:
    """The study of the zero-shot scores."""
    section = run.recipe.search
    sampler = None if section.sampler == SURROGATE else make_sampler(section.sampler, run.recipe.seed)
    return open_study(run.folder / "journal.log", "score", score_objectives(run), sampler)


def train_study(run: Run) -> optuna.Study:
    """The study of the trained networks."""
    return open_study(run.folder / "journal.log", "train", train_objectives(run))


def _finalists(run: Run) -> list[Arch]:
    section, objectives = run.recipe.search, score_objectives(run)
    study = score_study(run)
    stage = f"score networks ({section.score})"
    if section.sampler == SURROGATE:
        known: dict[Arch, float | None] = {arch: trial.values[0] for arch, trial in recorded(study).items()}
        known |= dict.fromkeys(failed(study))

        def score(arch: Arch) -> float | None:
            return known[arch] if arch in known else _score(run, study, arch, None)

        assisted_search(
            run.space,
            score,
            run.predictor.predict_ms,
            objectives,
            evaluations=section.evaluations,
            seed=run.recipe.seed,
            progress=lambda done, total: run.progress(stage, done, total),
        )
    else:
        limit = np.inf if section.latency is None else section.latency
        for done in range(len(recorded(study)) + len(failed(study)), section.evaluations):
            run.progress(stage, done, section.evaluations)
            trial, arch = ask_arch(study, run.space, lambda archs: run.predictor.predict_ms(archs) <= limit)
            _score(run, study, arch, trial)
    scored = recorded(study)
    archs = list(scored)
    values = np.array([scored[arch].values for arch in archs]).reshape(len(archs), 2)
    return [archs[row] for row in choose_finalists(values, objectives, section.finalists)]


def _score(run: Run, study: optuna.Study, arch: Arch, trial: optuna.Trial | None) -> float | None:
    """Score an architecture and record it as a trial; None where the score is undefined."""
    data, size = run.data, run.space.input_shape(arch)[1]
    count = min(run.recipe.search.score_batch, len(data.x_train))
    images = normalise(data.x_train[:count], data.mean, data.std, size)
    name = run.recipe.search.score
    result = compute_scores([name], build(run, arch), images, data.y_train[:count], seed=run.recipe.seed)[name]
    if result.value is None:
        record_failure(study, run.space, arch, result.reason or "undefined", trial=trial)
    else:
        latency = float(run.predictor.predict_ms(np.array([arch]))[0])
        record_trial(study, run.space, arch, (result.value, latency), {"seconds": result.seconds}, trial=trial)
    return result.value


def build(run: Run, arch: Arch) -> nn.Module:
    """The network with initial weights that follow from the recipe's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.recipe.seed)
        return run.space.build(arch)


def _train(run: Run, arch: Arch, stage: str) -> None:
    """Train an architecture and record it as a trial, unless it is one already."""
    study = train_study(run)
    if arch in recorded(study) or arch in failed(study):
        return
    section = run.recipe.train
    config = TrainConfig(**section.model_dump(), seed=run.recipe.seed)
    module, name = build(run, arch), run.network_name(arch)
    checkpoint = run.folder / "weights" / f"{name}.checkpoint"
    run.progress(stage, 0, section.epochs)
    try:
        result = train(
            module,
            run.data,
            run.space.input_shape(arch)[1],
            config,
            checkpoint=checkpoint,
            progress=lambda done, total, facts: run.progress(stage, done, total),
        )
    except TrainingFailed as error:
        record_failure(study, run.space, arch, str(error))
        return
    # The weights are on disk before the trial says that they are; the checkpoint goes last.
    save_weights(module, weights_path(run, arch))
    latency = float(run.predictor.predict_ms(np.array([arch]))[0])
    record_trial(study, run.space, arch, (result.valid_accuracy, latency), asdict(result))
    checkpoint.unlink(missing_ok=True)


def weights_path(run: Run, arch: Arch) -> Path:
    """Where a trained network's weights are."""
    return run.folder / "weights" / f"{run.network_name(arch)}.pt"


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's weights: the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    torch.save(module.state_dict(), unfinished)
    unfinished.replace(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load weights into a module of the same architecture. Raises RunError if they cannot be used."""
    try:
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # zip, pickle and torch each raise their own
        raise RunError(
            f"the weights in {path} cannot be used ({type(error).__name__}: {error}); restore them, or begin anew "
            "with: hwnas run --fresh RECIPE"
        ) from error


def export_stage(run: Run) -> RunSummary:
    """Export the front as ONNX, check the files, measure them again on the target, and write summary and report."""
    run.open_folder()
    with run.timed("export"):
        front = trained_front(run)
        folder = run.folder / "export"
        models, verified = {}, {}
        for number, arch in enumerate(front):
            run.progress("export and check", number, len(front))
            models[arch], verified[arch] = _export(run, arch, folder)
        run.progress("export and check", len(front), len(front))
    warnings: list[str] = []
    with run.timed("measure"):
        files = {run.network_name(arch): _file(run, arch) for arch in front}
        try:
            measured: dict[str, Measured | str] = {
                **measure_files(
                    files,
                    run.space,
                    run.table,
                    run.device,
                    progress=lambda done, total: run.progress("measure exported files", done, total),
                )
            }
        except HwprofError as error:
            # The files are good; that they could not be measured here is said in their place.
            measured = dict.fromkeys(files, str(error))
            warnings.append(f"the exported files were not measured: {error}")
    rows = [_row(run, arch, verified[arch], measured[run.network_name(arch)]) for arch in front]
    for arch, row in zip(front, rows, strict=True):
        card = _card(run, row, verified[arch])
        write_onnx(models[arch], metadata_of(card), _file(run, arch))
        write_card(card, _file(run, arch))
    return _write_summary(run, rows, warnings + _drift_warnings(measured.values()))


def _export(run: Run, arch: Arch, folder: Path) -> tuple[Any, Verification]:
    module = build(run, arch)
    load_weights(module, weights_path(run, arch))
    model = export_onnx(module, run.space.input_shape(arch))
    write_onnx(model, {}, _file(run, arch))
    return model, verify_onnx(_file(run, arch), module, _test_batches(run, run.space.input_shape(arch)[1]))


def _file(run: Run, arch: Arch) -> Path:
    return run.folder / "export" / f"{run.network_name(arch)}.onnx"


def _test_batches(run: Run, size: int, batch: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    data = run.data
    for start in range(0, len(data.x_test), batch):
        images = normalise(data.x_test[start : start + batch], data.mean, data.std, size)
        yield images.contiguous(), data.y_test[start : start + batch]


def _row(run: Run, arch: Arch, verified: Verification, measured: Measured | str) -> NetworkRow:
    matrix = np.array([arch])
    low, high = run.predictor.interval_ms(matrix, CONFIDENCE)
    trial = recorded(train_study(run))[arch]
    refused = measured if isinstance(measured, str) else measured.refused
    found = None if isinstance(measured, str) or measured.refused else measured
    limit = run.recipe.search.latency
    blocks = run.space.blocks(arch)
    file = _file(run, arch)
    return NetworkRow(
        name=run.network_name(arch),
        arch=format_arch(arch),
        choice=run.space.describe(arch),
        accuracy=verified.accuracy,
        valid_accuracy=trial.values[0],
        predicted_ms=float(run.predictor.predict_ms(matrix)[0]),
        predicted_low_ms=float(low[0]),
        predicted_high_ms=float(high[0]),
        measured_ms=found.ms if found else None,
        measured_low_ms=found.low_ms if found else None,
        measured_high_ms=found.high_ms if found else None,
        refused=refused,
        macs=sum(block.macs for block in blocks),
        params=sum(block.params for block in blocks),
        file=file.relative_to(run.folder).as_posix(),
        size_bytes=file.stat().st_size,
        within_limit=None if found is None or limit is None else found.ms <= limit,
    )


def _card(run: Run, row: NetworkRow, verified: Verification) -> dict[str, Any]:
    """What a stranger needs to run the file and to know where it comes from."""
    data = run.data
    return {
        "version": __version__,
        "name": row.name,
        "space": {"name": run.space.name, **run.space.config},
        "arch": row.arch,
        "choice": row.choice,
        "target": {**asdict(run.target), **run.table.fingerprint},
        "accuracy_percent": row.accuracy,
        "valid_accuracy_percent": row.valid_accuracy,
        "predicted_ms": row.predicted_ms,
        "predicted_interval_ms": [row.predicted_low_ms, row.predicted_high_ms],
        "measured_ms": row.measured_ms,
        "not_measured": row.refused,
        "max_logit_difference": verified.max_difference,
        "macs": row.macs,
        "params": row.params,
        "data": data.name,
        "classes": list(data.class_names),
        "input": {
            "shape": ["batch", *run.space.input_shape(tuple(map(int, row.arch.split("-"))))],
            "scale": "pixels / 255, then (x - mean) / std per channel",
            "mean": list(data.mean),
            "std": list(data.std),
        },
    }


def _drift_warnings(measured: Iterable[Measured | str]) -> list[str]:
    drifts = [result.anchor_drift for result in measured if isinstance(result, Measured)]
    worst = max(drifts, key=abs, default=0.0)
    if abs(worst) <= 0.1:
        return []
    return [
        f"the anchors run {worst:+.0%} beside the time they had when the table was made; latencies are given on the "
        "table's scale, as this machine ran then"
    ]


def _write_summary(run: Run, rows: Sequence[NetworkRow], warnings: list[str]) -> RunSummary:
    validation = run.table.validation
    limit = run.recipe.search.latency
    summary = RunSummary(
        name=run.recipe.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
        space={"name": run.space.name, **run.space.config},
        target={**asdict(run.target), **run.table.fingerprint},
        limits={} if limit is None else {LATENCY_LIMIT: limit},
        networks=tuple(rows),
        candidates=tuple(_candidates(run)),
        table=TableFacts(
            path=str(run.table_path),
            rows=len(run.table.rows),
            held_out=validation.models if validation else None,
            mean_error=validation.mean_error if validation else None,
            max_error=validation.max_error if validation else None,
            noise_floor=validation.noise_floor if validation else None,
        ),
        seconds=run.seconds(),
        recipe=run.recipe_text,
        warnings=tuple(warnings),
    )
    write_atomic(run.folder / "summary.json", summary.to_json())
    write_html(summary, run.folder / "report.html")
    return summary


def _candidates(run: Run) -> Iterator[Candidate]:
    trained = recorded(train_study(run))
    for arch, trial in recorded(score_study(run)).items():
        accuracy = trained[arch].values[0] if arch in trained else None
        yield Candidate(format_arch(arch), {run.recipe.search.score: trial.values[0]}, trial.values[1], accuracy)


def report_stage(folder: Path) -> RunSummary:
    """Write the report of a finished run again from its summary."""
    path = folder / "summary.json"
    try:
        summary = RunSummary.from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{folder} is not a finished run: {error}; export it first: hwnas export RECIPE") from error
    write_html(summary, folder / "report.html")
    return summary


def run_all(run: Run) -> RunSummary:
    """Profile, search and export."""
    run.open_folder()
    with run.timed("profile"):
        profile_stage(run)
    search_stage(run)
    return export_stage(run)
