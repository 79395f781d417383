"""The three stages: profile, search (with training), export. Each starts from what the one before left on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch import Tensor, nn

from hwnas.confirm import confirmed
from hwnas.errors import DataError, PredictorError, RunError
from hwnas.export.card import metadata_of, write_card
from hwnas.export.onnx import export_onnx, write_onnx
from hwnas.export.verify import Verification, verify_onnx
from hwnas.latency.check import Check, check_table, reanchored
from hwnas.latency.measure import Measured, measure_files
from hwnas.latency.selection import SweepConfig
from hwnas.latency.sweep import profile
from hwnas.report.html import write_html
from hwnas.report.summary import RunSummary
from hwnas.results import drift_warnings, exported_file, model_card, network_row, write_summary
from hwnas.run import SURROGATE, Run, move_aside, score_objectives, score_study, train_objectives, train_study
from hwnas.search.assisted import assisted_search, choose_finalists
from hwnas.search.pareto import nondominated
from hwnas.search.problem import to_losses
from hwnas.search.study import ask_arch, failed, record_failure, record_trial, recorded
from hwnas.space import Arch
from hwnas.train.loop import TrainConfig, TrainingFailed, train
from hwnas.train.preprocess import normalise
from hwnas.zeroshot import compute_scores
from hwprof.errors import HwprofError
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
    config = SweepConfig(section.networks, section.fit, section.held_out, seed=run.recipe.seed)
    table = profile(run.space, run.target, run.devices, path, config, progress=run.progress)
    return ProfileResult(path, table, False)


def check_stage(run: Run) -> Check:
    """Measure the anchors of the recipe's table again, and put the table on today's scale if it still holds.

    Raises what `check_table` raises.
    """
    check = check_table(run.space, run.table, run.device, progress=run.progress)
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
    data, size = run.data, run.space.input_shape(arch)[1]
    count = min(run.recipe.search.score_batch, len(data.x_train))
    images = normalise(data.x_train[:count], data.mean, data.std, size)
    name = run.recipe.search.score
    result = compute_scores([name], build(run, arch), images, data.y_train[:count], seed=run.recipe.seed)[name]
    if result.value is None:
        record_failure(study, run.space, arch, result.reason or "undefined", trial=trial)
    else:
        latency = float(run.searched_ms(np.array([arch]))[0])
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
    config = TrainConfig(**section.model_dump(exclude={"threads"}), seed=run.recipe.seed)
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
            max_threads=section.threads,
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
        models, verified = {}, {}
        for number, arch in enumerate(front):
            run.progress("export and check", number, len(front))
            models[arch], verified[arch] = _export(run, arch)
        run.progress("export and check", len(front), len(front))
    warnings: list[str] = []
    with run.timed("measure"):
        files = {run.network_name(arch): exported_file(run, arch) for arch in front}
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
        except (HwprofError, PredictorError) as error:  # no such device here, or a table without anchors
            # The files are good; that they could not be measured here is said in their place.
            measured = dict.fromkeys(files, str(error))
            warnings.append(f"the exported files were not measured: {error}")
    rows = [network_row(run, arch, verified[arch], measured[run.network_name(arch)]) for arch in front]
    for arch, row in zip(front, rows, strict=True):
        card = model_card(run, row, verified[arch])
        write_onnx(models[arch], metadata_of(card), exported_file(run, arch))
        write_card(card, exported_file(run, arch))
    return write_summary(run, rows, warnings + drift_warnings(measured.values()))


def _export(run: Run, arch: Arch) -> tuple[Any, Verification]:
    module = build(run, arch)
    load_weights(module, weights_path(run, arch))
    model = export_onnx(module, run.space.input_shape(arch))
    write_onnx(model, {}, exported_file(run, arch))
    return model, verify_onnx(exported_file(run, arch), module, _test_batches(run, run.space.input_shape(arch)[1]))


def _test_batches(run: Run, size: int, batch: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    data = run.data
    for start in range(0, len(data.x_test), batch):
        images = normalise(data.x_test[start : start + batch], data.mean, data.std, size)
        yield images.contiguous(), data.y_test[start : start + batch]


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
