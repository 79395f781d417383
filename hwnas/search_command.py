"""`hwnas search`: the front of trained, or of untrained networks."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hwnas.console import Fresh, Json, RecipePath, out, print_json, recipe_run

SEARCH_EXAMPLE = "Example: hwnas search pipelines/quickstart.toml"


def search(
    recipe: RecipePath,
    fresh: Fresh = False,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Train nothing: the front of score against predicted latency.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search under the latency table by training networks; goes on where it was stopped.

    A supernet may be trained by several processes: torchrun --nproc_per_node 4 -m hwnas search RECIPE.
    """
    if zero_shot:
        _search_zero_shot(recipe, fresh, as_json)
        return
    from hwnas.pipeline import help_stage, require_supernet, search_stage
    from hwnas.run import train_study
    from hwnas.search.study import recorded
    from hwnas.space import format_arch
    from hwnas.supernets import accuracy_note
    from hwnas.trained import front_members

    with recipe_run(recipe, fresh and _rank() == 0) as run:
        if _rank() > 0:
            help_stage(run)
            return
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            require_supernet(run)
        run.open_folder()
        search_stage(run)
        front, trials, note = front_members(run), recorded(train_study(run)), accuracy_note(run)
    rows = [
        {
            "network": run.at(member.precision).label(member.arch),
            "valid_accuracy_percent": member.accuracy,
            "predicted_ms": member.latency_ms,
            "precision": member.precision,
            "arch": format_arch(member.arch),
        }
        for member in front
    ]
    if as_json:
        print_json(rows)
        return
    table = Table(title=f"Front of {len(trials)} trained networks", title_justify="left")
    for heading in ("Network", "Accuracy %\n(validation)", "Predicted\nms"):
        table.add_column(heading, justify="left" if heading == "Network" else "right")
    for row in rows:
        table.add_row(str(row["network"]), f"{row['valid_accuracy_percent']:.1f}", f"{row['predicted_ms']:.3g}")
    out.print(table)
    if note is not None:
        out.print(note, soft_wrap=True)
    out.print(f"next: hwnas export {recipe}", soft_wrap=True)


def _rank() -> int:
    """Which process of torchrun this is; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def _search_zero_shot(recipe: Path, fresh: bool, as_json: bool) -> None:
    """Print the front of untrained networks."""
    from hwnas.pipeline import score_stage
    from hwnas.report.wording import silent_scores
    from hwnas.run import score_objectives, score_study
    from hwnas.scored import without_vote
    from hwnas.search.study import recorded
    from hwnas.space import format_arch

    with recipe_run(recipe, fresh) as run:
        front, silent = score_stage(run), without_vote(run)
        scored = len(recorded(score_study(run)))
        score = score_objectives(run)[0].name
        names = {one.arch: run.network_name(one.arch) for one in front}
    if as_json:
        print_json([{"network": names[one.arch], **asdict(one), "arch": format_arch(one.arch)} for one in front])
        return
    table = Table(title=f"Front of {scored} untrained networks", title_justify="left")
    table.add_column("Network", no_wrap=True)
    table.add_column("Predicted\nms", justify="right", no_wrap=True)
    for name in [score, *(front[0].places if len(front[0].places) > 1 else ())]:
        table.add_column(f"{name}\nplace", justify="right", overflow="fold")
    for one in front:
        shown = one.places.values() if len(one.places) > 1 else ()
        table.add_row(names[one.arch], f"{one.predicted_ms:.3g}", str(one.place), *map(str, shown))
    out.print(table)
    if silent:
        out.print(silent_scores(silent), soft_wrap=True)
    out.print(f"next, to train some of them: hwnas search {recipe}", soft_wrap=True)
