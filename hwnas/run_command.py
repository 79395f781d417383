"""`hwnas run`: all stages of a recipe, or a network again from its card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from hwnas.console import Fresh, Json, err, out, print_json, print_summary, recipe_run

if TYPE_CHECKING:
    from hwnas.card_recipe import Given

RUN_EXAMPLE = "Example: hwnas run pipelines/quickstart.toml"


def run(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A recipe (TOML); write one with: hwnas new.")
    ] = None,
    fresh: Fresh = False,
    from_card: Annotated[
        Path | None,
        typer.Option(metavar="CARD", help="Instead of a recipe: train and measure a network again from its card."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="With --from-card: the device, if the card's is not local.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="With --from-card: your copy of the data, e.g. folder:PATH.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="With --from-card: a latency table, else one is measured.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(metavar="FOLDER", help="With --from-card: the folder of the run's folder.")
    ] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Profile, search and export in one go; goes on where it was stopped."""
    if from_card is not None and recipe is None:
        from hwnas.card_recipe import Given

        _run_from_card(from_card, runs, Given(target, data, table), fresh, as_json)
        return
    if recipe is None or any(given is not None for given in (from_card, target, data, table)):
        raise typer.BadParameter("give a RECIPE, or --from-card CARD with its options")
    from hwnas.pipeline import run_all

    with recipe_run(recipe, fresh) as current:
        summary = run_all(current)
    print_summary(summary, current.folder, as_json)


def _run_from_card(path: Path, runs: Path, given: Given, fresh: bool, as_json: bool) -> None:
    """Train, export and measure a card's network again; exit code 1 if what comes out contradicts the card."""
    from hwnas.card import read_card
    from hwnas.from_card import reproduce, write_recipe
    from hwnas.report.reproduction import reproduction_table

    card = read_card(path)
    recipe, notes = write_recipe(card, runs, given, fresh=fresh)
    for note in notes:
        err.print(Text(note, style="yellow"), soft_wrap=True)
    with recipe_run(recipe) as current:
        result = reproduce(current, card)
    if as_json:
        print_json({**asdict(result), "holds": result.holds, "verdict": result.verdict})
    else:
        out.print(reproduction_table(result))
        out.print(Text(result.verdict, style="bold"), soft_wrap=True)
        out.print(f"report: {current.folder / 'report.html'}", soft_wrap=True)
    if not result.holds:
        raise typer.Exit(1)
