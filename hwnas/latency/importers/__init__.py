"""Latency tables that others published, as ours: `import_table` reads a file of any format in `IMPORTERS`.

What is published are blocks measured alone, so their sum is neither fused nor overlapped; the rows carry the origin
"imported", the table no whole networks, and predictions no interval. An entry that is none of our blocks keeps its
publisher's key. To add a format: a file with `UNIT`, `matches`, `read`, `translate`, and a line here.
"""

from __future__ import annotations

import hashlib
import importlib
import shlex
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, cast

from hwnas import __version__
from hwnas.latency.importers.entry import UNITS_MS, Entry, Translation, summed_row
from hwnas.latency.importers.plausible import absurd
from hwprof.errors import TableError
from hwprof.merge import pooled_row
from hwprof.table import LatencyTable, Row
from hwprof.target import Target

IMPORTERS = {
    "csv": "hwnas.latency.importers.phone_csv",
    "once-for-all": "hwnas.latency.importers.once_for_all",
    "proxylessnas": "hwnas.latency.importers.proxylessnas",
    "fbnet": "hwnas.latency.importers.fbnet",
}

# Published tables have some hundred rows, some ten kilobytes.
LARGEST_BYTES = 4 * 1024 * 1024
MOST_ENTRIES = 10_000


class Importer(Protocol):
    """A format: what its module has. `UNIT` is the unit of its times."""

    UNIT: str

    def matches(self, text: str) -> bool:
        """Whether the text looks like this format."""

    def read(self, text: str, source: str) -> list[Entry]:
        """The entries of the text; raises TableError, naming `source`."""

    def translate(self, entries: Sequence[Entry]) -> Iterator[Translation]:
        """What the entries are to us; each is in at least one translation."""


@dataclass(frozen=True)
class Imported:
    """An imported table, and what a reader should know of it.

    `foreign` are the keys that are none of our blocks; `pooled` the keys that the file gives several times (a block
    that stands in several places, or at several resolutions), with `largest_difference` between those times, as a
    fraction; `doubtful` says what is wrong with rows that were kept all the same.
    """

    table: LatencyTable
    format: str
    entries: int
    foreign: tuple[str, ...]
    pooled: tuple[str, ...]
    largest_difference: float
    doubtful: tuple[str, ...]


def import_table(
    path: Path,
    *,
    target: Target,
    format: str | None = None,
    table: str | None = None,
    resolution: int | None = None,
    unit: str | None = None,
    source: str = "",
    licence: str = "",
    keep_absurd: bool = False,
) -> Imported:
    """The table in a file, for a target that the file does not name.

    `format` is a name in IMPORTERS (found from the content by default); `table` chooses one of several in the file,
    `resolution` the rows of one input size, `unit` (us, ms, s) replaces the format's own. `source` and `licence` say
    who published it, for the provenance. Raises TableError, saying what is wrong and what to do.
    """
    data = _read(path)
    text = _text(data, path)
    name = _format_of(text, path) if format is None else format
    importer = _importer(name)
    if unit is not None and unit not in UNITS_MS:
        raise TableError(f"unknown unit {unit!r}; known: {', '.join(UNITS_MS)}")
    factor = UNITS_MS[unit or importer.UNIT]
    entries = [entry.scaled(factor) for entry in importer.read(text, str(path))]
    if len(entries) > MOST_ENTRIES:
        raise TableError(f"{path} has {len(entries)} rows, at most {MOST_ENTRIES} are read; is it the right file?")
    entries = _chosen(entries, path, table, resolution)
    translations = list(importer.translate(entries))
    several: dict[str, list[Row]] = defaultdict(list)
    try:
        for translation in translations:
            several[translation.key].append(summed_row(translation.entries))
        rows = {key: pooled_row(times) for key, times in several.items()}
        pooled = {key: times for key, times in several.items() if len(times) > 1}
        differences = [max(_ms(times)) / min(_ms(times)) - 1 for times in pooled.values()]
    except ArithmeticError as error:
        raise TableError(
            f"{path} has times too large or too small to compute with ({error}); is the unit right (--unit)?"
        ) from error
    blocks = {translation.key: translation.block for translation in translations if translation.block is not None}
    doubtful = tuple(f"{key}: {what}" for key, what in absurd(_times(rows), blocks).items())
    if doubtful and not keep_absurd:
        raise TableError(
            f"{path}: {len(doubtful)} of {len(rows)} rows cannot be true: {'; '.join(doubtful[:3])}. "
            "Mend the file, or import it all the same with --keep-absurd"
        )
    imported = {
        "file": path.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "format": name,
        "table": entries[0].table or None,
        "resolutions": sorted({entry.resolution for entry in entries if entry.resolution is not None}),
        "source": source or "not said",
        "licence": licence or "not said",
        "unit": unit or importer.UNIT,
        "statistic": "mean of blocks measured alone; of several means, their average by count",
        "entries": len(entries),
        "foreign": len(rows) - len(blocks),
        "pooled": len(pooled),
        "doubtful": len(doubtful),
    }
    return Imported(
        LatencyTable(
            target=target,
            fingerprint={"device": target.device, "runtime": target.runtime, "measured": "by others"},
            provenance=_provenance(imported),
            intercept_ms=0.0,
            models=(),
            validation=None,
            rows=rows,
        ),
        name,
        len(entries),
        tuple(key for key in rows if key not in blocks),
        tuple(pooled),
        max(differences, default=0.0),
        doubtful,
    )


def _read(path: Path) -> bytes:
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or pipe" if path.exists() else "not there"
        raise TableError(f"{path} is {kind}; give the file of a published latency table")
    with path.open("rb") as file:
        data = file.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise TableError(_too_large(path))
    return data


def _text(data: bytes, path: Path) -> str:
    if data[:2] == b"\x1f\x8b":
        try:
            unpacker = zlib.decompressobj(wbits=31)
            unpacked = unpacker.decompress(data, LARGEST_BYTES + 1)
        except zlib.error as error:
            raise TableError(f"{path} is a damaged gzip file: {error}; fetch it again") from error
        if len(unpacked) > LARGEST_BYTES:
            raise TableError(_too_large(path))
        if not unpacker.eof:
            raise TableError(f"{path} is a gzip file that is cut off; fetch it again")
        data = unpacked
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is no text: {error}; give the file of a published latency table") from error
    if "\0" in text:
        raise TableError(f"{path} is no text but binary; give the file of a published latency table")
    if not text.strip():
        raise TableError(f"{path} is empty; fetch it again")
    return text.replace("\r\n", "\n")


def _too_large(path: Path) -> str:
    return (
        f"{path} is larger than {LARGEST_BYTES // 1024**2} MiB (unpacked); no latency table is, is it the right file?"
    )


def _format_of(text: str, path: Path) -> str:
    found = [name for name in IMPORTERS if _importer(name).matches(text)]
    if len(found) != 1:
        raise TableError(
            f"{path} looks like {' and '.join(found) or 'no known latency table'}; "
            f"say which it is: --format {' | '.join(IMPORTERS)}"
        )
    return found[0]


def _importer(name: str) -> Importer:
    if name not in IMPORTERS:
        raise TableError(f"unknown format {name!r}; known: {', '.join(IMPORTERS)}")
    return cast("Importer", importlib.import_module(IMPORTERS[name]))


def _chosen(entries: Sequence[Entry], path: Path, table: str | None, resolution: int | None) -> list[Entry]:
    tables = sorted({entry.table for entry in entries})
    if table is None and len(tables) > 1:
        raise TableError(f"{path} holds several tables; choose one with --table: {', '.join(tables)}")
    if table is not None and table not in tables:
        raise TableError(f"{path} has no table {table!r}; it has: {', '.join(filter(None, tables)) or 'one, unnamed'}")
    chosen = [entry for entry in entries if table in (None, entry.table)]
    if resolution is None:
        return chosen
    found = sorted({entry.resolution for entry in chosen if entry.resolution is not None})
    if resolution not in found:
        raise TableError(
            f"{path} has no rows for resolution {resolution}; it has: {', '.join(map(str, found)) or 'none by name'}"
        )
    return [entry for entry in chosen if entry.resolution == resolution]


def _provenance(imported: dict[str, Any]) -> dict[str, Any]:
    return {
        "hwnas": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "imported": imported,
    }


def _times(rows: dict[str, Row]) -> dict[str, float]:
    return {key: row.ms for key, row in rows.items()}


def _ms(rows: Sequence[Row]) -> list[float]:
    return [row.ms for row in rows]
