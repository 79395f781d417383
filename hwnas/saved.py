"""Frozen dataclasses as JSON files: what is read is exactly what was declared, or an error that names the key.

A dataclass to be saved carries `@with_config(EXACT)`: no key more or less, no type guessed, no NaN.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from hwnas.errors import HwnasError

EXACT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
LARGEST = 2**28  # characters
Saved = TypeVar("Saved")

_NUMBERS: TypeAdapter[dict[str, float | None]] = TypeAdapter(
    dict[str, Annotated[float, Field(ge=0)] | None], config=EXACT
)


def to_text(value: Any, error: type[HwnasError], source: str) -> str:
    """A dataclass as JSON text. Raises `error`, naming `source` and the key, if it could not be read again."""
    text = json.dumps(asdict(value), indent=1, ensure_ascii=False) + "\n"
    from_text(type(value), text, error, source)
    return text


def from_text(kind: type[Saved], text: str, error: type[HwnasError], source: str) -> Saved:
    """The inverse of `to_text`. Raises `error`, naming `source` and the first bad key."""
    return _read(TypeAdapter(kind), text, error, source, "run the last stage again")


def numbers_from_text(text: str, error: type[HwnasError], source: str, advice: str) -> dict[str, float | None]:
    """A JSON object of finite numbers of at least 0, or null. Raises `error` with the first bad key and the advice."""
    return _read(_NUMBERS, text, error, source, advice)


def _read(adapter: TypeAdapter[Saved], text: str, error: type[HwnasError], source: str, advice: str) -> Saved:
    if len(text) > LARGEST:
        raise error(f"{source} cannot be used: {len(text)} characters, as no such file has; {advice}")
    try:
        return adapter.validate_json(text)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole text"
        raise error(f"{source} cannot be used: {key[:200]}: {first['msg']}; {advice}") from None
