"""One line of somebody else's latency table, checked; and several measurements of one block put together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hwnas.blocks import Block
from hwprof.errors import TableError
from hwprof.table import Row

UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Entry:
    """A published time under its publisher's own key. `std_ms` and `count` are None where they were not published.

    `resolution` is that of the network's input image; `table` is the table's name in a file that holds several.
    """

    key: str
    ms: float
    std_ms: float | None = None
    count: int | None = None
    resolution: int | None = None
    table: str = ""

    def scaled(self, factor: float) -> Entry:
        """The entry in another unit of time."""
        return replace(self, ms=self.ms * factor, std_ms=None if self.std_ms is None else self.std_ms * factor)


@dataclass(frozen=True)
class Translation:
    """What entries mean here: one of our blocks, or None for what is none of them; `entries` are parts to be summed."""

    key: str
    block: Block | None
    entries: tuple[Entry, ...]


def parse_entry(
    source: str,
    key: str,
    mean: object,
    std: object = None,
    count: object = None,
    *,
    resolution: int | None = None,
    table: str = "",
) -> Entry:
    """An entry from the text of its numbers; `source` names the file. Raises TableError on anything but good numbers.

    An entry has a standard deviation and a count, or neither.
    """
    ms = _number(source, key, "mean", mean)
    if ms <= 0:
        raise TableError(
            f"{source}: the mean of {key} is {mean}, must be above 0; take the row out, or measure it anew"
        )
    if (std is None) != (count is None):
        lacking = "std" if std is None else "count"
        raise TableError(f"{source}: {key} has no {lacking}; give both std and count for a row, or neither")
    if std is None:
        return Entry(key, ms, resolution=resolution, table=table)
    std_ms, repeats = _number(source, key, "std", std), _number(source, key, "count", count)
    if std_ms < 0:
        raise TableError(f"{source}: the std of {key} is {std}, must be at least 0")
    if repeats < 1 or repeats != int(repeats):
        raise TableError(f"{source}: the count of {key} is {count}, must be a whole number of at least 1")
    return Entry(key, ms, std_ms, int(repeats), resolution, table)


def _number(source: str, key: str, name: str, value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise TableError(f"{source}: the {name} of {key} is {str(value)[:40]!r}, must be a finite number")
    return number


def distinct(source: str, entries: Iterable[Entry]) -> list[Entry]:
    """The entries, each once. Raises TableError where one key has different values, or there is no entry at all."""
    found: dict[tuple[str, int | None, str], Entry] = {}
    for entry in entries:
        first = found.setdefault((entry.table, entry.resolution, entry.key), entry)
        if first != entry:
            raise TableError(
                f"{source} holds {entry.key} twice with different values ({_told(first)} and {_told(entry)}); "
                "delete the wrong one"
            )
    if not found:
        raise TableError(f"{source} holds no latency at all")
    return list(found.values())


def _told(entry: Entry) -> str:
    return f"{entry.ms:g}" + ("" if entry.count is None else f", std {entry.std_ms:g}, count {entry.count}")


def summed_row(parts: Sequence[Entry]) -> Row:
    """The row of a block that was published in parts that run one after the other: times and variances add."""
    ms = math.fsum(part.ms for part in parts)
    counts = [part.count for part in parts if part.count is not None]
    if len(counts) < len(parts):
        return Row(ms, 0.0, 0, "imported")
    std = math.sqrt(math.fsum((part.std_ms or 0.0) ** 2 for part in parts))
    return Row(ms, std / ms, min(counts), "imported")
