"""Checks of a space's arguments: each says the argument's name, what it needs and what was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hwnas.errors import SpaceError

Holds = Callable[[Any], bool]


def require(arguments: Mapping[str, Any], name: str, holds: Holds, needs: str) -> None:
    """Raise SpaceError unless the argument of that name is as it must be."""
    if not holds(arguments[name]):
        raise SpaceError(f"{name} needs {needs}, got {arguments[name]!r}")


def list_of(holds: Holds) -> Holds:
    """Whether a value is a list (or tuple) of at least one value, all as they must be."""
    return lambda values: isinstance(values, (list, tuple)) and bool(values) and all(map(holds, values))


def is_count(value: Any) -> bool:
    """A positive integer."""
    return type(value) is int and value >= 1


def is_count_or_zero(value: Any) -> bool:
    """An integer that is not negative."""
    return type(value) is int and value >= 0


def is_ratio(value: Any) -> bool:
    """A number above 0, at most 16."""
    return type(value) in (int, float) and 0 < value <= 16


def is_bool(value: Any) -> bool:
    """True or False, not a number."""
    return isinstance(value, bool)
