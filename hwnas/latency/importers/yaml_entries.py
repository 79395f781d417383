"""Reads tables of two levels, `key: {mean, std or var, count}`, written in YAML or JSON.

Parsed as a stream of events, so nothing is constructed, a key given twice is seen, and anything deeper, any alias, tag
or list ends the reading at once: a hostile file costs no more than its length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import yaml

from hwnas.latency.importers.entry import Entry, distinct, parse_entry
from hwprof.errors import TableError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STATISTICS = {"mean", "std", "var", "count"}


def bottleneck_key(text: str) -> str | None:
    """The first key of an inverted bottleneck, as a key of YAML or JSON; None where there is none."""
    found = re.search(r'(expanded_conv-input:[\w:-]*?)["\']?\s*:\s', text)
    return None if found is None else found.group(1)


def read_entries(text: str, source: str) -> list[Entry]:
    """The entries of a table. Raises TableError, saying where, on text that is not one, or is cut off."""
    try:
        return distinct(source, [_entry(source, key, values) for key, values in _pairs(text, source)])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise TableError(
            f"{source} is no YAML{where}: {getattr(error, 'problem', None) or error}. "
            "Is the file complete, and is the format right (--format)?"
        ) from error


def _entry(source: str, key: str, values: dict[str, str]) -> Entry:
    unknown = sorted(set(values) - _STATISTICS)
    if unknown or "mean" not in values:
        lacking = f"has the unknown statistic {unknown[0]!r}" if unknown else "has no mean"
        raise TableError(f"{source}: {key} {lacking}; a row has mean, count, and std or var")
    std = values.get("std")
    if "var" in values:
        if std is not None:
            raise TableError(f"{source}: {key} has both std and var; keep one")
        std = _root(source, key, values["var"])
    return parse_entry(source, key, values["mean"], std, values.get("count"))


def _root(source: str, key: str, variance: str) -> str:
    try:
        return repr(math.sqrt(float(variance)))
    except ValueError:
        raise TableError(f"{source}: the var of {key} is {variance!r}, must be a number of at least 0") from None


def _pairs(text: str, source: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(key, {statistic: text}) of each row."""
    levels: list[str | None] = []  # per open mapping, the key that waits for its value
    values: dict[str, str] = {}
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentEndEvent)):
            continue
        if isinstance(event, yaml.DocumentStartEvent):
            if levels or values:
                raise TableError(f"{source} holds more than one document")
            continue
        line = event.start_mark.line + 1
        if isinstance(event, yaml.MappingStartEvent) and event.tag is None and event.anchor is None:
            if len(levels) == 2 or (levels and levels[-1] is None):
                raise TableError(f"{source}: line {line} is nested deeper than a table of rows and their statistics")
            levels.append(None)
            values = {}
        elif isinstance(event, yaml.MappingEndEvent):
            levels.pop()
            if levels:
                key, levels[-1] = levels[-1], None
                yield str(key), values
        elif isinstance(event, yaml.ScalarEvent) and event.tag is None and event.anchor is None and levels:
            if levels[-1] is None:
                levels[-1] = event.value
            elif len(levels) == 2:
                if levels[-1] in values:
                    raise TableError(f"{source}: line {line} gives {levels[-1]} of {levels[0]} twice")
                values[levels[-1]] = event.value
                levels[-1] = None
            else:
                raise TableError(f"{source}: line {line}: {levels[-1]!r} has no statistics but {event.value[:40]!r}")
        else:
            raise TableError(f"{source}: line {line} is no row of a latency table (mean, std or var, count)")
