"""The latency table: block keys -> measured rows for one target, as text that a person can read and diff.

A table is a JSON file with one row a line. It carries what it is valid for (target, fingerprint), how it was made
(provenance), the anchors that later measurements are put on the scale of, the whole models that were measured with it,
its validation, and a checksum that a hand-edited or truncated file fails.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hwprof.errors import TableError, TargetError
from hwprof.files import read_bounded, write_atomic
from hwprof.target import Target, target_from_json, to_json

SCHEMA = "hwprof-latency-table"
VERSION = 3
READABLE = (1, 2, 3)  # version 1 had no fusion_ms, version 2 no searched models
HELD_OUT = ("held-out", "searched")
ROLES = ("anchor", "fit", *HELD_OUT)
ORIGINS = ("measured", "estimated", "imported")
LARGEST = sys.float_info.max
LARGEST_BYTES = 64 * 2**20  # some hundred times what tables have
LONGEST_NAME = 1000


# What a terminal or a page would not show but do; a name is shown in both. Also half a character (a surrogate).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """Latency in ms of one block inside a network that runs without a profiler.

    `profiled_ms` is what a profiler measured: the median over the block's occurrences, with their relative spread and
    their number. `origin` is "measured", "estimated" for a block that no profiled network held (`count` is then 0), or
    "imported" from somebody else's table of blocks measured alone: `spread` is then the standard deviation of a
    measurement over its mean, `count` the number of measurements, and both are 0 where they were not published.
    """

    ms: float
    spread: float
    count: int
    origin: str = "measured"
    profiled_ms: float | None = None


@dataclass(frozen=True)
class Model:
    """A whole model measured without the profiler.

    `role` is "anchor", "fit" (what the rows were calibrated with), "held-out" (drawn at random, and never fitted) or
    "searched" (never fitted either, but chosen as a search would choose that has only the rows to go by).
    `ms` is on the anchors' scale; `again_ms` is the same model in a second session (None if it was not measured twice).
    """

    name: str
    role: str
    ms: float
    spread: float
    again_ms: float | None = None


@dataclass(frozen=True)
class Validation:
    """How well whole models are predicted: mean and largest |predicted / measured - 1| over `models` held-out models.

    `noise_floor` is the mean |second session / first session - 1| of the same models: nothing predicts better.
    `searched_error` is the mean |predicted / measured - 1| over searched models, None where there are none.
    """

    models: int
    mean_error: float
    max_error: float
    noise_floor: float
    searched_error: float | None = None


_ALWAYS = ("models", "mean_error", "max_error", "noise_floor")


@dataclass(frozen=True)
class LatencyTable:
    """Measured latencies for one target: a model takes `intercept_ms` and, for each of its blocks, that row's ms.

    `fusion_ms` is what each of the named operators adds (or saves, below 0) that the runtime fuses or shares across
    blocks; empty where latency is additive over blocks. `provenance` is free-form.
    """

    target: Target
    fingerprint: dict[str, str]
    provenance: dict[str, Any]
    intercept_ms: float
    models: tuple[Model, ...]
    validation: Validation | None
    rows: dict[str, Row]
    fusion_ms: dict[str, float] = field(default_factory=dict)

    @property
    def anchors(self) -> tuple[Model, ...]:
        """The models whose geometric mean is the scale of every measurement."""
        return tuple(model for model in self.models if model.role == "anchor")

    def require_target(self, target: Target, fingerprint: dict[str, str] | None = None) -> None:
        """Raise TableError unless the table was measured on this target (and, if given, this very kind of machine).

        How a machine is reached does not matter where its fingerprint is known, nor which of a farm's devices it is.
        """
        found, wanted = to_json(self.target), to_json(target)
        if fingerprint is not None or set(_devices(target)) <= set(_devices(self.target)):
            found["device"] = wanted["device"]
        differences = _differences(found, wanted)
        if fingerprint is not None:
            differences += _differences(self.fingerprint, fingerprint)
        if differences:
            raise TableError(
                f"the latency table is of another target: {'; '.join(differences)}. "
                "Measure this target: hwnas profile --fresh RECIPE"
            )

    def scaled(self, factor: float) -> LatencyTable:
        """The same table of a machine that is `factor` times slower all over."""

        def times(value: float | None) -> float | None:
            return None if value is None else value * factor

        return replace(
            self,
            intercept_ms=self.intercept_ms * factor,
            models=tuple(replace(model, ms=model.ms * factor, again_ms=times(model.again_ms)) for model in self.models),
            rows={
                key: replace(row, ms=row.ms * factor, profiled_ms=times(row.profiled_ms))
                for key, row in self.rows.items()
            },
            fusion_ms={name: ms * factor for name, ms in self.fusion_ms.items()},
        )


def _devices(target: Target) -> list[str]:
    return [text.strip() for text in target.device.split(",")]


def _differences(table: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [
        f"{key} is {table.get(key)!r} in the table, {wanted.get(key)!r} wanted"
        for key in sorted({*table, *wanted})
        if table.get(key) != wanted.get(key)
    ]


def write_table(table: LatencyTable, path: Path) -> None:
    """Write the table atomically: the old file or the new one, whatever happens. Raises TableError on bad rows."""
    _check_values(table, "the table")
    write_atomic(path, dump_table(table))


def dump_table(table: LatencyTable) -> str:
    """The table as text."""
    head = {
        "schema": SCHEMA,
        "version": VERSION,
        "target": to_json(table.target),
        "fingerprint": table.fingerprint,
        "provenance": table.provenance,
        "intercept_ms": table.intercept_ms,
        "fusion_ms": _rounded(table.fusion_ms),
        "validation": None if table.validation is None else _facts(table.validation),
    }
    lines = "\n" + ",\n".join(f" {json.dumps(key)}: {_lines(value)}" for key, value in head.items())
    models = ",\n".join("  " + json.dumps(_rounded(asdict(model))) for model in table.models)
    rows = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(_rounded(asdict(row)))}" for key, row in sorted(table.rows.items())
    )
    body = f'{lines},\n "models": [\n{models}\n ],\n "rows": {{\n{rows}\n }}'
    return _sealed(body) + "\n"


def _facts(validation: Validation) -> dict[str, Any]:
    return {name: value for name, value in asdict(validation).items() if value is not None}


def _lines(value: Any) -> str:
    """JSON with one line for every entry of an object, and no line breaks below that."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items()) + "\n }"


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Six significant digits, and what is not there left out: a table is read by people and diffed."""
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in values.items()
        if value is not None and (key, value) != ("origin", "measured")
    }


def _sealed(body: str) -> str:
    digest = hashlib.sha256(body.encode(errors="replace")).hexdigest()[:16]
    return f'{{{body},\n "checksum": "sha256:{digest}"\n}}'


def read_table(path: Path) -> LatencyTable:
    """Read a table. Raises TableError, saying what is wrong and what to do, if it is not one that can be trusted."""
    try:
        text = read_bounded(path, LARGEST_BYTES).decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        raise TableError(f"there is no latency table at {path}; make one with: hwnas profile RECIPE.toml") from None
    except (OSError, ValueError) as error:  # no text, or no path at all
        raise TableError(f"{path} cannot be read as a latency table: {error}") from error
    return load_table(text, str(path))


def load_table(text: str, source: str = "the table") -> LatencyTable:
    """A table from its text; `source` names it in errors."""
    try:
        values = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, source))
    except TableError:
        raise
    except (ValueError, RecursionError) as error:
        raise TableError(
            f"{source} is truncated or not a latency table: {error}. Profile again, or restore the file"
        ) from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise TableError(f'{source} is not a latency table: it has no "schema": "{SCHEMA}"')
    if values.get("version") not in READABLE:
        raise TableError(
            f"{source} has schema version {values.get('version')!r}, this hwprof reads "
            f"{', '.join(map(str, READABLE))}; profile again, or use the version of hwnas that wrote it"
        )
    body, found, _ = text.partition(',\n "checksum": ')
    if not found or text.rstrip() != _sealed(body[1:]):
        raise TableError(
            f"{source} was changed or damaged after it was written (its checksum does not hold); profile again"
        )
    try:
        table = LatencyTable(
            target=target_from_json(values["target"]),
            fingerprint={str(key): str(value) for key, value in values["fingerprint"].items()},
            provenance=dict(values["provenance"]),
            intercept_ms=values["intercept_ms"],
            models=tuple(Model(**model) for model in values["models"]),
            validation=None if values["validation"] is None else Validation(**values["validation"]),
            rows={key: Row(**row) for key, row in values["rows"].items()},
            fusion_ms=dict(values.get("fusion_ms", {})),
        )
    except (KeyError, TypeError, AttributeError, ValueError, TargetError) as error:
        raise TableError(f"{source} lacks or misnames a field of a latency table: {error!r}") from error
    _check_values(table, source)
    return table


def _unique(pairs: Iterable[tuple[str, Any]], source: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise TableError(f"{source} holds {key!r} twice; profile again, or delete one of them")
        values[key] = value
    return values


def _check_values(table: LatencyTable, source: str) -> None:
    """Every number finite and in its range: a bad one would be believed by everything behind it."""
    try:
        json.dumps(table.provenance, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise TableError(f"{source}: provenance must be plain finite values ({error}); profile again") from error
    names = [model.name for model in table.models]
    _check_names("target", [str(value) for value in to_json(table.target).values()], source)
    _check_names("fingerprint", [*table.fingerprint, *table.fingerprint.values()], source)
    _check_names("rows", table.rows, source)
    _check_names("fusion_ms", table.fusion_ms, source)
    _check_names("models", names, source)
    if len(set(names)) < len(names):
        ((twice, _),) = Counter(names).most_common(1)
        raise TableError(f"{source} holds the model {twice!r} twice; profile again, or delete one of them")
    positive: dict[str, Any] = {}
    counted: dict[str, Any] = {}
    for key, row in table.rows.items():
        positive[f"rows[{key!r}].ms"] = row.ms
        if row.profiled_ms is not None:
            positive[f"rows[{key!r}].profiled_ms"] = row.profiled_ms
        counted |= {f"rows[{key!r}].spread": row.spread, f"rows[{key!r}].count": row.count}
        if row.origin not in ORIGINS:
            raise TableError(f"{source}: rows[{key!r}].origin is {row.origin!r}, must be {', '.join(ORIGINS)}")
    for model in table.models:
        positive[f"models[{model.name!r}].ms"] = model.ms
        counted[f"models[{model.name!r}].spread"] = model.spread
        if model.again_ms is not None:
            positive[f"models[{model.name!r}].again_ms"] = model.again_ms
        if model.role not in ROLES:
            raise TableError(f"{source}: models[{model.name!r}].role is {model.role!r}, must be {', '.join(ROLES)}")
    if table.validation is not None:
        counted |= {f"validation.{name}": getattr(table.validation, name) for name in _ALWAYS}
        if table.validation.searched_error is not None:
            counted["validation.searched_error"] = table.validation.searched_error
    finite = {"intercept_ms": table.intercept_ms}
    finite |= {f"fusion_ms[{name!r}]": ms for name, ms in table.fusion_ms.items()}
    checks = [("a finite number", -math.inf, finite)]
    checks += [("a number of at least 0", 0.0, counted), ("a positive number", math.ulp(0.0), positive)]
    for expected, least, values in checks:
        for name, value in values.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            # Compared, not converted: a whole number can be too large for a float.
            if not number or not max(least, -LARGEST) <= value <= LARGEST:
                raise TableError(f"{source}: {name} is {value!r}, must be {expected}; profile again")


def _check_names(where: str, names: Iterable[Any], source: str) -> None:
    for name in names:
        if not isinstance(name, str) or len(name) > LONGEST_NAME or _CONTROL.search(name):
            raise TableError(
                f"{source}: {where} has the name {str(name)[:60]!r}, must be at most {LONGEST_NAME} characters without "
                "control characters; profile again"
            )
