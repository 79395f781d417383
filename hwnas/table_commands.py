"""`hwnas import` and `hwnas merge`: latency tables of others, and several tables as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwnas.errors import RecipeError
from hwprof.errors import TableError
from hwprof.merge import merge_tables
from hwprof.table import LatencyTable, read_table, write_table
from hwprof.target import Target

if TYPE_CHECKING:
    from hwnas.latency.importers import Imported

IMPORT_EXAMPLE = "Example: hwnas import 160_lookup_table.yaml --device note10 -o note10.json"
MERGE_EXAMPLE = "Example: hwnas merge 160.json 176.json -o both.json --prefer pooled"

out = Console()

Output = Annotated[Path, typer.Option("--output", "-o", metavar="TABLE", help="The latency table to write (JSON).")]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there already.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def import_table(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A table that others published (may be gzipped).")],
    output: Output,
    format: Annotated[
        str | None, typer.Option(help="csv, once-for-all, proxylessnas or fbnet; found from the content.")
    ] = None,
    table: Annotated[str | None, typer.Option(help="Which table of a file that holds several.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Only the rows of this input size.")] = None,
    unit: Annotated[
        str | None, typer.Option(help="Unit of the times: us, ms or s; by default the format's own.")
    ] = None,
    device: Annotated[str, typer.Option(help="What was measured, e.g. note10; a recipe's [target] names the same.")] = (
        "imported"
    ),
    runtime: Annotated[str, typer.Option(help="The runtime that was measured, e.g. tflite.")] = "unknown",
    threads: Annotated[int, typer.Option(min=1, help="Threads of one inference.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images of one inference.")] = 1,
    source: Annotated[str, typer.Option(help="Who published it and where, for the provenance.")] = "",
    licence: Annotated[str, typer.Option(help="Under what licence, for the provenance.")] = "",
    space: Annotated[str | None, typer.Option(help="A space: check that all its blocks have a row.")] = None,
    space_arguments: Annotated[
        str, typer.Option(metavar="JSON", help="The space's arguments, e.g. '{\"width_mults\": [1.2]}'.")
    ] = "{}",
    keep_absurd: Annotated[bool, typer.Option("--keep-absurd", help="Import rows that can hardly be true, too.")] = (
        False
    ),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Import a latency table that others published: Once-for-All, ProxylessNAS, FBNet, or CSV."""
    from hwnas.latency.importers import import_table as read_published

    _require_free(output, force)
    imported = read_published(
        file,
        target=Target(device=device, runtime=runtime, threads=threads, batch=batch),
        format=format,
        table=table,
        resolution=resolution,
        unit=unit,
        source=source,
        licence=licence,
        keep_absurd=keep_absurd,
    )
    missing = _missing(imported.table, space, space_arguments)
    write_table(imported.table, output)
    if as_json:
        _print_json(_facts(imported, output, missing))
    else:
        _print_imported(imported, output, space, missing)


def merge(
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="Latency tables of one target.")],
    output: Output,
    prefer: Annotated[
        str | None, typer.Option(help="Where rows differ: last, or pooled (averaged by count); else an error.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Unite latency tables of one target and machine."""
    _require_free(output, force)
    read = [read_table(path) for path in tables]
    merged = merge_tables(read, names=[str(path) for path in tables], prefer=prefer)
    write_table(merged, output)
    scales = [part["scale"] for part in merged.provenance["merged"]]
    if as_json:
        _print_json({"path": str(output), "rows": len(merged.rows), "models": len(merged.models), "scales": scales})
        return
    shown = Table(title="Merged", title_justify="left")
    for heading in ("Latency table", "Rows", "Scale"):
        shown.add_column(heading, overflow="fold", justify="left" if heading == "Latency table" else "right")
    for path, one, scale in zip(tables, read, scales, strict=True):
        shown.add_row(str(path), str(len(one.rows)), f"{scale:.4g}")
    shown.add_row(str(output), str(len(merged.rows)), "1")
    out.print(shown)


def _require_free(output: Path, force: bool) -> None:
    if output.is_dir():
        raise TableError(f"{output} is a folder; name a file to write: -o {output / 'table.json'}")
    if output.exists() and not force:
        raise TableError(f"{output} is there already; choose another name, or write over it with --force")


def _missing(table: LatencyTable, space: str | None, arguments: str) -> list[str] | None:
    """Keys of the space's blocks that have no row; None where no space was asked for."""
    if space is None:
        return None
    from hwnas.latency.index import BlockIndex
    from hwnas.spaces import make_space

    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"--space-arguments is no JSON: {error}; write e.g. '{{\"width_mults\": [1.2]}}'") from error
    if not isinstance(values, dict):
        raise RecipeError(f"--space-arguments must be a JSON object, got {arguments}")
    return [key for key in BlockIndex(make_space(space, values)).keys if key not in table.rows]


def _facts(imported: Imported, output: Path, missing: list[str] | None) -> dict[str, Any]:
    return {
        "path": str(output),
        "format": imported.format,
        "entries": imported.entries,
        "rows": len(imported.table.rows),
        "foreign": list(imported.foreign),
        "pooled": list(imported.pooled),
        "largest_difference": imported.largest_difference,
        "doubtful": list(imported.doubtful),
        "space_missing": missing,
        "provenance": imported.table.provenance,
    }


def _print_imported(imported: Imported, output: Path, space: str | None, missing: list[str] | None) -> None:
    facts = imported.table.provenance["imported"]
    shown = Table(title="Imported", title_justify="left")
    shown.add_column("Latency table")
    shown.add_column(str(output), overflow="fold")
    shown.add_row("format", imported.format)
    shown.add_row("target", f"{imported.table.target.device}, {imported.table.target.slug()}")
    shown.add_row("published", Text(f"{facts['source']}; licence: {facts['licence']}"))
    shown.add_row("resolutions", ", ".join(map(str, facts["resolutions"])) or "not said")
    shown.add_row("entries", f"{imported.entries}, as {len(imported.table.rows)} rows")
    if imported.pooled:
        shown.add_row(
            "given several times",
            f"{len(imported.pooled)} rows, averaged; up to {imported.largest_difference:.1%} apart",
        )
    if imported.foreign:
        names = ", ".join(imported.foreign[:3]) + (", …" if len(imported.foreign) > 3 else "")
        shown.add_row("none of our blocks", Text(f"{len(imported.foreign)}, kept under their own names: {names}"))
    if imported.doubtful:
        shown.add_row("doubtful", Text(f"{len(imported.doubtful)}: {'; '.join(imported.doubtful[:3])}"))
    if missing is not None:
        told = f"lacks {len(missing)} blocks, e.g. {missing[0]}" if missing else "every block has a row"
        shown.add_row(f"space {space}", Text(told))
    out.print(shown)
    out.print("sums of blocks measured alone by others: predictions have no interval until networks are measured")


def _print_json(value: Any) -> None:
    out.file.write(json.dumps(value, indent=1) + "\n")
