"""What travels with an exported file: metadata inside it, and the same facts as a JSON file beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwprof.files import write_atomic


def metadata_of(card: Mapping[str, Any]) -> dict[str, str]:
    """A card as metadata properties of a model file: every value as text (JSON where it is not text already)."""
    return {
        f"hwnas.{key}": value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        for key, value in card.items()
    }


def write_card(card: Mapping[str, Any], file: Path, beside: Sequence[Path] = ()) -> Path:
    """Write FILE.json beside an exported file, with its size and SHA-256, and those of files that belong to it.

    The path written.
    """
    facts = {**card, **_digest(file)}
    if beside:
        facts["beside"] = [_digest(other) for other in beside]
    path = file.with_name(file.name + ".json")
    write_atomic(path, json.dumps(facts, indent=1, allow_nan=False) + "\n")
    return path


def add_to_card(file: Path, facts: Mapping[str, Any]) -> None:
    """Write what was found out later into the card beside an exported file: the older card or the new one."""
    path = file.with_name(file.name + ".json")
    values = {**json.loads(path.read_text(encoding="utf-8")), **facts}
    write_atomic(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def _digest(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    return {"file": file.name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
