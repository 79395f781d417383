"""Quantities as a recipe writes them: a number with its unit, kept as a plain number in the base unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def parse_ms(value: object) -> float:
    """Milliseconds from text like '2 ms', '800 us' or '0.01 s'. Raises ValueError on anything else."""
    return _parse(value, _MILLISECONDS, "a time", "2 ms")


def parse_count(value: object) -> float:
    """A count from a number, or text like '20 M' or '400k'. Raises ValueError on anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value}"
    return _parse(value, _COUNTS, "a count", "20 M")


def parse_bytes(value: object) -> float:
    """Bytes from text like '2 MB' or '500 kB'. Raises ValueError on anything else."""
    return _parse(value, _BYTES, "a size", "2 MB")


def _parse(value: object, units: Mapping[str, float], what: str, example: str) -> float:
    match = (
        re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Zµ]*)\s*", value)
        if isinstance(value, str)
        else None
    )
    if match is None or (not match.group(2) and "" not in units):
        raise ValueError(f'write a number with its unit, like "{example}"')
    number, unit = float(match.group(1)), match.group(2).replace("µs", "us")
    if unit not in units:
        *most, last = [each for each in units if each]
        raise ValueError(f"the unit {unit!r} is not {what}; use {', '.join(most)} or {last}")
    if not 0 < number * units[unit] < math.inf:
        raise ValueError("must be above zero and not absurdly large")
    return number * units[unit]


Milliseconds = Annotated[float, BeforeValidator(parse_ms), PlainSerializer(lambda ms: f"{ms:g} ms")]
Count = Annotated[float, BeforeValidator(parse_count), PlainSerializer(lambda count: f"{count:g}")]
Bytes = Annotated[float, BeforeValidator(parse_bytes), PlainSerializer(lambda size: f"{size:g} B")]
