"""`csv`: comma-separated tables of such keys: table,resolution,key,mean_ms,std_ms,count (the first two optional)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from hwnas.latency.importers.entry import Entry, Translation, distinct, parse_entry
from hwnas.latency.importers.keys import dialect_of
from hwnas.latency.importers.keys import translate as translate_keys
from hwprof.errors import TableError

UNIT = "ms"
_REQUIRED = {"key", "mean_ms", "std_ms", "count"}
_OPTIONAL = {"table", "resolution"}


def matches(text: str) -> bool:
    """Whether the text looks like such a table."""
    return set(text.partition("\n")[0].strip().split(",")) >= _REQUIRED


def read(text: str, source: str) -> list[Entry]:
    """The entries of all tables in the file. Raises TableError."""
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        columns = list(reader.fieldnames or [])
        if not set(columns) >= _REQUIRED or len(set(columns)) < len(columns) or set(columns) - _REQUIRED - _OPTIONAL:
            raise TableError(
                f"{source} has the columns {columns[:8]}, a CSV table has key, mean_ms, std_ms, count and may have "
                "table and resolution"
            )
        return distinct(source, [_entry(row, f"{source}, line {reader.line_num}") for row in reader])
    except csv.Error as error:
        raise TableError(f"{source} is no CSV in line {reader.line_num}: {error}") from error


def _entry(row: dict[str, str], source: str) -> Entry:
    if None in row or None in row.values():
        raise TableError(f"{source} has another number of columns than the first line; is the file complete?")
    resolution = row.get("resolution", "")
    if resolution and not (resolution.isascii() and resolution.isdigit() and len(resolution) < 7):
        raise TableError(f"{source}: the resolution is {resolution!r}, must be a whole number")
    return parse_entry(
        source,
        row["key"],
        row["mean_ms"],
        row["std_ms"] or None,
        row["count"] or None,
        resolution=int(resolution) if resolution else None,
        table=row.get("table", ""),
    )


def translate(entries: Sequence[Entry]) -> Iterator[Translation]:
    """What the entries are to us."""
    return translate_keys(entries, dialect_of(entries))
