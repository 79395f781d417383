"""The three stages: profile, search (with training), export. Each starts from what the one before left on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import optuna

from hwnas.confirm import confirmed
from hwnas.errors import DataError, RunError
from hwnas.exporting import export_stage
from hwnas.latency.check import Check, check_table, reanchored
from hwnas.latency.selection import SweepConfig
from hwnas.latency.sweep import profile
from hwnas.report.html import write_html
from hwnas.report.summary import RunSummary
from hwnas.run import SURROGATE, Run, move_aside, score_objectives, score_study, train_study
from hwnas.search.assisted import assisted_search, choose_finalists
from hwnas.search.study import ask_arch, failed, record_failure, record_trial, recorded
from hwnas.space import Arch
from hwnas.train.device import training_device
from hwnas.train.loop import TrainConfig, TrainingFailed, train
from hwnas.train.preprocess import normalise
from hwnas.trained import build, save_weights, trained_front, weights_path
from hwnas.zeroshot import compute_scores
from hwprof.lock import table_lock
from hwprof.table import LatencyTable, write_table


@dataclass(frozen=True)
class ProfileResult:
    """A table, where it is, and whether it was there already."""

    path: Path
    table: LatencyTable
    reused: bool


def profile_stage(run: Run, *, fresh: bool = False) -> ProfileResult:
    """Measure the latency table of the recipe's target and space, unless it is there already.

    Raises TableError if it is there and its runtime was upgraded since; `fresh` moves the old table aside.
    """
    section = run.recipe.profile
    if section.table is not None:
        return ProfileResult(run.table_path, run.table, True)
    path = run.table_path
    if path.exists() and not fresh:
        run.table.require_target(run.target, run.fingerprint)
        return ProfileResult(path, run.table, True)
    if path.exists():
        with table_lock(path):
            move_aside(path)
    config = SweepConfig(section.networks, section.fit, section.held_out, seed=run.recipe.seed, plan=run.plan)
    table = profile(run.space, run.target, run.devices, path, config, progress=run.progress)
    return ProfileResult(path, table, False)


def check_stage(run: Run) -> Check:
    """Measure the anchors of the recipe's table again, and put the table on today's scale if it still holds.

    Raises what `check_table` raises.
    """
    check = check_table(run.space, run.table, run.device, plan=run.plan, progress=run.progress)
    if check.reason is None:
        write_table(reanchored(run.table, check), run.table_path)
    return check


def search_stage(run: Run) -> list[Arch]:
    """Score architectures, train the finalists, and give the front of the trained, fastest first.

    Everything evaluated is a trial of the run's journal; what is recorded there is not evaluated again. Finalists are
    measured before they are trained, those above the limit left out. Raises InfeasibleError if nothing keeps the
    latency limit, PredictorError if nothing measured does, RunError if every training failed.
    """
    run.open_folder()
    _check_data(run)
    with run.timed("score"):
        _score_networks(run)
    with run.timed("confirm"):
        finalists = confirmed(run, lambda rejected: _finalists(run, rejected))
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


def _score_networks(run: Run) -> None:
    """Score as many architectures as the recipe says, all within the limits; what is recorded counts."""
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
            run.searched_ms,
            objectives,
            evaluations=section.evaluations,
            seed=run.recipe.seed,
            progress=lambda done, total: run.progress(stage, done, total),
        )
    else:
        limit = np.inf if section.latency is None else section.latency
        for done in range(len(recorded(study)) + len(failed(study)), section.evaluations):
            run.progress(stage, done, section.evaluations)
            trial, arch = ask_arch(study, run.space, lambda archs: run.searched_ms(archs) <= limit)
            _score(run, study, arch, trial)


def _finalists(run: Run, rejected: set[Arch]) -> list[Arch]:
    """The scored architectures to train, spread over the front of those that are not `rejected`."""
    scored = {arch: trial for arch, trial in recorded(score_study(run)).items() if arch not in rejected}
    archs = list(scored)
    values = np.array([scored[arch].values for arch in archs]).reshape(len(archs), 2)
    return [archs[row] for row in choose_finalists(values, score_objectives(run), run.recipe.search.finalists)]


def _score(run: Run, study: optuna.Study, arch: Arch, trial: optuna.Trial | None) -> float | None:
    """Score an architecture and record it as a trial; None where the score is undefined."""
    data, size, device = run.data, run.space.input_shape(arch)[1], training_device(run.recipe.train.device)
    count = min(run.recipe.search.score_batch, len(data.x_train))
    images = normalise(data.x_train[:count], data.mean, data.std, size).to(device)
    labels = data.y_train[:count].to(device)
    name = run.recipe.search.score
    result = compute_scores([name], build(run, arch).to(device), images, labels, seed=run.recipe.seed)[name]
    if result.value is None:
        record_failure(study, run.space, arch, result.reason or "undefined", trial=trial)
    else:
        latency = float(run.searched_ms(np.array([arch]))[0])
        record_trial(study, run.space, arch, (result.value, latency), {"seconds": result.seconds}, trial=trial)
    return result.value


def _train(run: Run, arch: Arch, stage: str) -> None:
    """Train an architecture and record it as a trial, unless it is one already."""
    study = train_study(run)
    if arch in recorded(study) or arch in failed(study):
        return
    section = run.recipe.train
    config = TrainConfig(**section.model_dump(exclude={"threads", "device"}), seed=run.recipe.seed)
    module, name = build(run, arch), run.network_name(arch)
    checkpoint = run.folder / "weights" / f"{name}.checkpoint"
    run.progress(stage, 0, section.epochs)
    try:
        result = train(
            module,
            run.data,
            run.space.input_shape(arch)[1],
            config,
            device=training_device(section.device),
            checkpoint=checkpoint,
            max_threads=section.threads,
            progress=lambda done, total, facts: run.progress(stage, done, total),
        )
    except TrainingFailed as error:
        record_failure(study, run.space, arch, str(error))
        return
    # The weights are on disk before the trial says that they are; the checkpoint goes last.
    save_weights(module.cpu(), weights_path(run, arch))  # so that they are read where there is no GPU
    latency = float(run.predictor.predict_ms(np.array([arch]))[0])
    record_trial(study, run.space, arch, (result.valid_accuracy, latency), asdict(result))
    checkpoint.unlink(missing_ok=True)


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
    training_device(run.recipe.train.device)  # a GPU that is not there is said now, not when the table is measured
    run.open_folder()
    with run.timed("profile"):
        profile_stage(run)
    search_stage(run)
    return export_stage(run)
