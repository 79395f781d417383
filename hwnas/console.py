"""What the commands share: their arguments, where they print, and the run of a recipe with its progress bars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from rich.text import Text

if TYPE_CHECKING:
    from hwnas.run import Run

out, err = Console(), Console(stderr=True)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (TOML); write one with: hwnas new.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew; an older result is moved aside, not deleted.")]


@contextmanager
def recipe_run(path: Path, fresh: bool = False) -> Iterator[Run]:
    """The run of a recipe, with progress bars while it works."""
    from hwnas.recipe import load_recipe

    recipe = load_recipe(path)
    bars = ProgressBars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=err,
    )
    with bars:
        loading = bars.add_task("load torch", total=None)
        from hwnas.run import Run

        bars.remove_task(loading)
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int, /) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)
            if done >= total:
                bars.stop_task(tasks[stage])

        current = Run(recipe, path.read_text(encoding="utf-8"), progress=progress)
        if fresh and (old := current.move_away()) is not None:
            err.print(f"the older run is now {old}")
        try:
            yield current
        except KeyboardInterrupt:
            err.print("interrupted; the same command goes on from here")
            raise typer.Exit(130) from None


def print_summary(summary: Any, folder: Path, as_json: bool) -> None:
    from hwnas.report.terminal import front_table
    from hwnas.report.wording import verdict

    if as_json:
        out.file.write(summary.to_json())
        return
    out.print(front_table(summary))
    out.print(verdict(summary))
    for warning in summary.warnings:
        out.print(Text(f"warning: {warning}", style="yellow"))
    out.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def print_json(value: Any) -> None:
    out.file.write(json.dumps(value, indent=1) + "\n")
