"""Frozen dataclasses as JSON files: what is read is exactly what was declared, or an error that names the key.

A dataclass to be saved carries `@with_config(EXACT)`: no key more or less, no type guessed, no NaN.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hwnas.errors import HwnasError

EXACT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Saved = TypeVar("Saved")


def to_text(value: Any, error: type[HwnasError], source: str) -> str:
    """A dataclass as JSON text. Raises `error`, naming `source` and the key, if it could not be read again."""
    text = json.dumps(asdict(value), indent=1, ensure_ascii=False) + "\n"
    from_text(type(value), text, error, source)
    return text


def from_text(kind: type[Saved], text: str, error: type[HwnasError], source: str) -> Saved:
    """The inverse of `to_text`. Raises `error`, naming `source` and the first bad key."""
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole text"
        raise error(f"{source} cannot be used: {key}: {first['msg']}; run the last stage again") from None
