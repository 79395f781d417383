"""The command line: `hwnas --help` lists its commands.

Results go to standard output (as JSON with --json), progress and errors to standard error. Exit codes: 0 done, 1 an
error that the message explains, 2 wrong usage, 130 interrupted (run the same command again to go on).
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from hwnas import (
    __version__,
    export_command,
    listing_commands,
    run_command,
    score_command,
    search_command,
    table_commands,
    transfer_command,
)
from hwnas.console import Fresh, Json, RecipePath, err, out, print_json, print_summary, recipe_run
from hwnas.errors import HwnasError
from hwnas.printable import printable
from hwprof.errors import HwprofError

# Idle OpenMP threads that spin take the core from what is being trained or measured; torch reads this when imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; every error that is ours ends in one message and exit code 1."""
    try:
        app()
    except (HwnasError, HwprofError) as error:
        err.print(Text(printable(f"error: {error}"), style="red"), soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        # A full disk, a folder that cannot be written: nothing that was finished is lost.
        err.print(
            Text(printable(f"error: {error}; the same command goes on from here once that is mended"), style="red"),
            soft_wrap=True,
        )
        sys.exit(1)


@app.command(epilog="Example: hwnas profile pipelines/quickstart.toml")
def profile(
    recipe: RecipePath,
    fresh: Fresh = False,
    check: Annotated[
        bool, typer.Option("--check", help="Measure the table's anchors again; if it holds, put it on today's scale.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the target of a recipe and write its latency table; goes on where it was stopped."""
    from hwnas.pipeline import profile_stage

    if check:
        if fresh:
            raise typer.BadParameter("--check keeps the table, --fresh measures anew: choose one")
        _check(recipe, as_json)
        return
    with recipe_run(recipe) as run:
        result = profile_stage(run, fresh=fresh)
    facts = result.table.provenance
    if as_json:
        validation = asdict(result.table.validation) if result.table.validation else None
        print_json(
            {
                "path": str(result.path),
                "reused": result.reused,
                "rows": len(result.table.rows),
                "validation": validation,
            }
        )
        return
    table = Table(
        title="Already measured (--fresh measures anew)" if result.reused else "Measured", title_justify="left"
    )
    table.add_column("Latency table")
    table.add_column(str(result.path), overflow="fold")
    for name, value in result.table.fingerprint.items():
        table.add_row(Text(name), Text(value))
    estimated = sum(row.origin == "estimated" for row in result.table.rows.values())
    table.add_row("blocks", f"{len(result.table.rows)}, {estimated} of them estimated")
    table.add_row("networks profiled", str(facts.get("profiled_networks")))
    table.add_row("device time", f"{facts.get('device_seconds')} s")
    if (validation_ := result.table.validation) is not None:
        table.add_row(
            f"error on {validation_.models} unseen networks",
            f"{validation_.mean_error:.1%} mean, {validation_.max_error:.1%} largest",
        )
        if validation_.searched_error is not None:
            table.add_row("error on networks as searches choose them", f"{validation_.searched_error:.1%} mean")
        table.add_row("noise floor", f"{validation_.noise_floor:.1%} (the same networks measured again)")
    out.print(table)


@app.command(epilog="Example: hwnas validate pipelines/quickstart.toml --max-error 5%")
def validate(
    recipe: RecipePath,
    networks: Annotated[int, typer.Option(min=1, help="Unseen networks to measure.")] = 60,
    seed: Annotated[int | None, typer.Option(min=0, help="Which networks; by default the recipe's seed.")] = None,
    session_repeat: Annotated[bool, typer.Option(help="Measure them again in a second session: the noise floor.")] = (
        True
    ),
    table: Annotated[Path | None, typer.Option(help="The latency table, if not the recipe's.")] = None,
    max_error: Annotated[str | None, typer.Option(help="Exit with 1 if the mean error is above this, e.g. 5%.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where to; by default beside the table.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure networks that a latency table has never seen: does it still predict what the target takes?

    Of several precisions, the table of each.
    """
    from hwnas.latency.unseen_session import ValidateConfig
    from hwnas.report.terminal import validation_notes, validation_table
    from hwnas.validating import PAGE, failure, parse_fraction, validate_each

    limit = None if max_error is None else parse_fraction(max_error)
    with recipe_run(recipe) as run:
        config = ValidateConfig(networks, run.recipe.seed if seed is None else seed, session_repeat, plan=run.plan)
        results = list(validate_each(run, config, output, table))
    if as_json:
        texts = [result.to_json() for _, result, _ in results]
        out.file.write(texts[0] if len(texts) == 1 else "[" + ",".join(texts) + "]\n")
    for precision, result, folder in () if as_json else results:
        if len(results) > 1:
            out.print(Text(precision, style="bold"))
        out.print(validation_table(result))
        for note in validation_notes(result):
            out.print(Text(note), soft_wrap=True)
        for note in result.notes:
            out.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
        out.print(Text(result.verdict, style="bold"), soft_wrap=True)
        out.print(f"page: {folder / PAGE}", soft_wrap=True)
    reasons = [
        (precision, reason) for precision, result, _ in results if (reason := failure(result, limit)) is not None
    ]
    for precision, reason in reasons:
        which = f"{precision}: " if len(results) > 1 else ""
        err.print(Text(f"error: {which}{reason}", style="red"), soft_wrap=True)
    if reasons:
        raise typer.Exit(1)


def _check(recipe: Path, as_json: bool) -> None:
    """Print whether the recipe's tables hold, of every precision; exit code 1 if one does not."""
    from hwnas.pipeline import check_stage

    with recipe_run(recipe) as run:
        parts = [run.at(precision) for precision in run.precisions]
        results = [(part.table_path, check_stage(part)) for part in parts]
    if as_json:
        values = [{"path": str(path), "holds": one.reason is None, **asdict(one)} for path, one in results]
        print_json(values if len(values) > 1 else values[0])
    for path, result in () if as_json else results:
        table = Table(title="Checked", title_justify="left")
        table.add_column("Latency table")
        table.add_column(str(path), overflow="fold")
        table.add_row(
            "speed of this machine", f"the anchors take {result.factor:.3f} times as long as when it was measured"
        )
        worst = max(result.shifts.values(), key=abs)
        table.add_row("anchors against each other", f"moved by {worst:+.1%} at most")
        table.add_row(
            f"{result.networks} networks measured again", f"{result.change:.1%} mean change, limit {result.limit:.1%}"
        )
        out.print(table)
        out.print(
            "the table holds and is on today's scale now"
            if result.reason is None
            else f"the table does not hold any more: {result.reason}; measure anew: hwnas profile --fresh {recipe}",
            soft_wrap=True,
        )
    if any(result.reason is not None for _, result in results):
        raise typer.Exit(1)


app.command(epilog=search_command.SEARCH_EXAMPLE)(search_command.search)


@app.command(epilog=export_command.EXPORT_EXAMPLE)
def export(
    run: export_command.RunPath,
    target: export_command.TargetText = None,
    formats: export_command.Formats = None,
    precision: export_command.Precisions = None,
    normalise: export_command.Normalise = "outside",
    network: export_command.Networks = None,
    output: export_command.Output = None,
    as_json: Json = False,
) -> None:
    """Export the front of a finished search, check the files and measure them again on the target.

    With --format or --target: in those formats, each file checked, and measured if the target runs it, in a folder with
    its card and an example to run it.
    """
    wanted = export_command.wanted_of(target, formats, precision, normalise, network, output)
    with recipe_run(export_command.recipe_of(run)) as current:
        if run.is_dir():
            current.folder = run
        if wanted is None:
            from hwnas.exporting import export_stage

            summary = export_stage(current)
        else:
            from hwnas.shipping import ship_networks

            cards = ship_networks(current, wanted)
    if wanted is None:
        print_summary(summary, current.folder, as_json)
    elif as_json:
        print_json(cards)
    else:
        export_command.show(cards)


app.command(epilog=run_command.RUN_EXAMPLE)(run_command.run)


@app.command(epilog="Example: hwnas report runs/quickstart")
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")], as_json: Json = False
) -> None:
    """Write the report of a finished run again and show its front."""
    from hwnas.pipeline import report_stage

    print_summary(report_stage(folder), folder, as_json)


@app.command(epilog="Example: hwnas new my.toml && hwnas run my.toml")
def new(path: Annotated[Path, typer.Argument(metavar="RECIPE", help="The file to write.")]) -> None:
    """Write a commented recipe to start from."""
    from hwnas.errors import RecipeError
    from hwnas.template import new_recipe

    if path.exists():
        raise RecipeError(f"{path} is there already; choose another name, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(new_recipe(path), encoding="utf-8")
    out.print(f"wrote {path}; run it with: hwnas run {path}", soft_wrap=True)


app.command(epilog=listing_commands.DEVICES_EXAMPLE)(listing_commands.devices)
app.command(epilog=listing_commands.SPACES_EXAMPLE)(listing_commands.spaces)
app.command("import", epilog=table_commands.IMPORT_EXAMPLE)(table_commands.import_table)
app.command(epilog=table_commands.MERGE_EXAMPLE)(table_commands.merge)
app.command(epilog=score_command.SCORE_EXAMPLE)(score_command.score)
app.command(epilog=transfer_command.TRANSFER_EXAMPLE)(transfer_command.transfer)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


class _Notes(logging.Handler):
    """What is waited for, above the progress bars; said once, however often it is logged."""

    _last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if (message := record.getMessage()) != self._last:
            self._last = message
            err.print(Text(message, style="yellow"), soft_wrap=True)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Hardware-aware neural architecture search: profile a device, search under its latency, export and re-measure."""
    notes = logging.getLogger("hwprof")
    if not notes.handlers:
        notes.addHandler(_Notes())
