"""`hwnas transfer`: a latency table for a device of which only totals of whole networks can be read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hwprof.files import write_atomic
from hwprof.table import write_table

if TYPE_CHECKING:
    from hwnas.run import Run
    from hwnas.space import Arch

TRANSFER_EXAMPLE = "Example: hwnas transfer phone.toml -o phone; again once phone/times.csv is filled in"

out = Console()

# Architectures whose intervals tell how well the device is known.
_SHOWN = 500


@dataclass(frozen=True)
class Transfer:
    """Where a transfer stands in a precision: networks chosen and measured, source tables, the table if there is one.

    `half_width` is the median half width of the 90% interval over random networks, a fraction.
    """

    precision: str
    times: str
    networks: int
    measured: int
    sources: list[str]
    table: str | None
    half_width: float | None


def transfer(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (TOML): its space and [target].")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where files and the table go.")],
    shots: Annotated[
        int, typer.Option(min=1, help="How many networks are measured; more can be asked for later.")
    ] = 10,
    source: Annotated[
        list[Path] | None,
        typer.Option(help="Table of another device; by default every table of this space in profile.tables."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Choose a few networks to measure on a new device; once their times are filled in, predict the whole space.

    Of several precisions each has a folder of its own in FOLDER.
    """
    from hwnas.recipe import load_recipe
    from hwnas.run import Run

    run = Run(load_recipe(recipe), recipe.read_text(encoding="utf-8"))
    several = len(run.precisions) > 1
    results = {
        precision: _transfer(run.at(precision), output / precision if several else output, shots, source)
        for precision in run.precisions
    }
    if as_json:
        values = [asdict(result) for result in results.values()]
        out.file.write(json.dumps(values if several else values[0], indent=1) + "\n")
        return
    for result in results.values():
        _show(result, f"Transfer, {result.precision}" if several else "Transfer")
    tables = [results[precision].table for precision in _as_written(run)]
    if None not in tables:
        named = json.dumps(tables if several else tables[0])
        out.print(f"to search with it, say in the recipe: [profile] table = {named}", soft_wrap=True, markup=False)


def _show(result: Transfer, title: str) -> None:
    shown = Table(title=title, title_justify="left")
    shown.add_column("Measured networks")
    shown.add_column(f"{result.measured} of {result.networks}", overflow="fold")
    shown.add_row("source tables", "\n".join(result.sources) or "none: measure more networks")
    if result.half_width is not None:
        shown.add_row("90 % interval", f"± {result.half_width:.1%} (median of {_SHOWN} random networks)")
        shown.add_row("latency table", str(result.table))
    out.print(shown)
    if result.measured < result.networks:
        out.print(
            f"next: run the model files in {Path(result.times).parent} on the device, write the milliseconds of each "
            f"into {result.times}, then run this command again",
            soft_wrap=True,
        )


def _as_written(run: Run) -> list[str]:
    """The recipe's precisions in its own order, which is that of its tables."""
    given = run.recipe.target.precision
    return [given] if isinstance(given, str) else given


def _transfer(run: Run, folder: Path, shots: int, source: list[Path] | None) -> Transfer:
    from hwnas.latency.fewshot import (
        TransferPredictor,
        dump_times,
        find_sources,
        networks_to_measure,
        read_sources,
        read_times,
        transfer_table,
    )

    space, seed, times = run.space, run.recipe.seed, folder / "times.csv"
    sources = read_sources(space, source) if source else find_sources(space, Path(run.recipe.profile.tables))
    known: list[tuple[Arch, str, float | None]] = []
    if times.exists():
        known = read_times(space, times.read_text(encoding="utf-8", errors="replace"), str(times))
    if len(known) < shots:
        chosen = networks_to_measure(space, sources, shots - len(known), seed, [arch for arch, _, _ in known])
        folder.mkdir(parents=True, exist_ok=True)
        for arch in chosen:
            known.append((arch, _write_model(run, arch, folder), None))
        write_atomic(times, dump_times(known))
    measured = {arch: ms for arch, _, ms in known if ms is not None}
    table, half_width = None, None
    if measured:
        table = folder / "table.json"
        made = transfer_table(space, run.target, sources, measured, seed, folder)
        half_width = _half_width(TransferPredictor(space, made, sources), run)
        write_table(made, table)
    return Transfer(
        precision=run.target.precision,
        times=str(times),
        networks=len(known),
        measured=len(measured),
        sources=[str(path) for path in sources.predictors],
        table=None if table is None else str(table),
        half_width=half_width,
    )


def _write_model(run: Run, arch: Arch, folder: Path) -> str:
    from hwnas.graphs import write_arch
    from hwprof.runtimes import RUNTIMES
    from hwprof.target import Target

    target = run.target
    if target.runtime not in RUNTIMES:  # what only the user can run (an app, a service) gets ONNX
        in_onnx = Target(batch=target.batch, precision=target.precision)
        target = in_onnx if target.precision in RUNTIMES[in_onnx.runtime].precisions else Target(batch=target.batch)
    return write_arch(run.space, arch, target, folder / run.network_name(arch)).name


def _half_width(predictor: Any, run: Run) -> float:
    import numpy as np

    archs = run.space.sample(_SHOWN, np.random.default_rng(0))
    low, high = predictor.interval_ms(archs)
    return float(np.median(np.sqrt(high / low) - 1))
