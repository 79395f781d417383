"""The three stages: profile, search (with training), export. Each starts from what the one before left on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwnas import executors
from hwnas.errors import DataError, RecipeError, RunError
from hwnas.exporting import export_stage
from hwnas.latency.check import Check, check_table, reanchored
from hwnas.latency.selection import SweepConfig
from hwnas.latency.sweep import profile
from hwnas.proxyless_search import search_proxyless
from hwnas.report.html import write_html
from hwnas.report.summary import RunSummary
from hwnas.run import SURROGATE, Run, move_aside
from hwnas.scored import ScoredNetwork, score_networks, scored_front
from hwnas.space import Arch
from hwnas.supernets import help_train, search_supernet
from hwnas.train.device import training_device
from hwnas.trained import trained_front
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

    Of several precisions, that of each; the result is the plainest's. Raises TableError if it is there and its runtime
    was upgraded since; `fresh` moves the old table aside.
    """
    if len(run.precisions) > 1:
        plainest, *_ = [profile_stage(run.at(precision), fresh=fresh) for precision in run.precisions]
        return plainest
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
    sizes = (section.networks, section.fit, section.held_out, section.searched)
    config = SweepConfig(*sizes, seed=run.recipe.seed, plan=run.plan)
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


def score_stage(run: Run) -> list[ScoredNetwork]:
    """Score architectures without training any, and give the front of predicted latency and score, fastest first.

    Every scored architecture is a trial of the run's journal; what is recorded there is not scored again. Raises
    InfeasibleError if nothing keeps the latency limit, PredictorError if none of what does has a score.
    """
    run.open_folder()
    _check_data(run)
    with run.timed("score"):
        score_networks(run)
    return scored_front(run)


def search_stage(run: Run) -> list[Arch]:
    """Search by training networks, or all of them as one supernet, and give the front of the trained, fastest first.

    The surrogate scores architectures first. Everything evaluated is a trial of the run's journal; what is recorded
    there is not evaluated again. Networks are measured before they are trained, those above the limit left out. Raises
    InfeasibleError if nothing keeps the limits, RunError if every training failed.
    """
    by_supernet = run.recipe.supernet.used
    if run.recipe.search.sampler == SURROGATE and not by_supernet:
        score_stage(run)
    run.open_folder()
    _check_data(run)
    with run.timed("train"):
        if run.recipe.supernet.method == "proxyless":
            search_proxyless(run)
        elif by_supernet:
            search_supernet(run)
        else:
            executors.search(run)
    return trained_front(run)


def help_stage(run: Run) -> None:
    """What a process of torchrun but the first does: it trains the supernet with the others.

    Raises RecipeError where the recipe trains none: other searches have executors of their own.
    """
    require_supernet(run)
    _check_data(run)
    help_train(run)


def require_supernet(run: Run) -> None:
    """Raise RecipeError unless the recipe trains a supernet, which several processes of torchrun can."""
    if run.recipe.supernet.method not in ("progressive", "sandwich"):
        raise RecipeError(
            'torchrun is for supernets (supernet.method = "sandwich" or "progressive"); several networks at once are '
            'trained by search.executor = "processes"'
        )


def _check_data(run: Run) -> None:
    """Raise DataError unless the space's networks take the data's images and tell its classes apart."""
    channels = run.space.largest_input[0]
    if (channels, run.space.num_classes) != (run.data.channels, run.data.num_classes):
        raise DataError(
            f"the space has {channels} channels and {run.space.num_classes} classes, the data {run.data.name} has "
            f"{run.data.channels} and {run.data.num_classes}: leave space.in_channels and space.num_classes out of the "
            "recipe, then they are the data's"
        )


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
