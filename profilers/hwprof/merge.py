"""Several latency tables of one target and machine as one: rows united, numbers on one scale.

Two tables with anchors were measured on scales of their own, which only anchors measured in both can join: the second's
times are multiplied by the geometric mean of first / second over them. Tables without anchors (imported ones) are taken
as they are. A validation speaks of one table's own rows, so a merged table has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hwprof.errors import TableError
from hwprof.table import ROLES, LatencyTable, Model, Row
from hwprof.target import to_json

PREFERENCES = ("last", "pooled")
# Anchors of a machine in another state do not move together; up to here their ratios may differ.
LARGEST_DISAGREEMENT = 0.10
# Rows were calibrated together with their table's intercept; up to this part of a network it does not matter.
NEGLIGIBLE = 0.01


def merge_tables(
    tables: Sequence[LatencyTable], *, names: Sequence[str] | None = None, prefer: str | None = None
) -> LatencyTable:
    """All rows and models of the tables, in the first one's scale; `names` tell the tables apart in errors.

    A key with different times is an error unless `prefer` is "last" or "pooled" (averaged by count). Raises TableError
    where targets or fingerprints differ, or where there is no common scale.
    """
    names = [f"table {number}" for number in range(1, len(tables) + 1)] if names is None else names
    if len(tables) < 2 or len(names) != len(tables):
        raise TableError(f"give at least two tables to merge, each with its name; got {len(tables)} and {len(names)}")
    if prefer is not None and prefer not in PREFERENCES:
        raise TableError(f"prefer is {prefer!r}, must be {' or '.join(PREFERENCES)}")
    history = [_history(name, table) for name, table in zip(names, tables, strict=True)]
    merged = tables[0]
    for number in range(1, len(tables)):
        before = " + ".join(names[:number])
        try:
            scale = _scale(merged, tables[number], before, names[number])
            merged = _merge(merged, tables[number].scaled(scale), before, names[number], prefer)
        except ArithmeticError as error:
            raise TableError(
                f"times of {before} and {names[number]} are too large or too small to compute with ({error}); "
                "profile the one with absurd times again"
            ) from error
        history[number]["scale"] = scale
    provenance: dict[str, Any] = {"merged": history, "prefer": prefer}
    spaces = [table.provenance.get("space") for table in tables]
    if spaces[0] is not None and all(space == spaces[0] for space in spaces):
        provenance["space"] = spaces[0]
    return replace(merged, provenance=provenance, validation=None)


def pooled_row(rows: Sequence[Row]) -> Row:
    """One row from several of the same block: means and variances (within and between) weighted by count.

    A row of unknown count weighs as one measurement, unless others have counts, which then are all that counts.
    """
    if len(rows) == 1:
        return rows[0]
    counted = [row for row in rows if row.count] or rows
    weights = [max(row.count, 1) for row in counted]
    total = sum(weights)
    ms = math.fsum(weight * row.ms for weight, row in zip(weights, counted, strict=True)) / total
    variance = math.fsum(
        weight * ((row.spread * row.ms) ** 2 + (row.ms - ms) ** 2) for weight, row in zip(weights, counted, strict=True)
    )
    profiled = [(weight, row.profiled_ms) for weight, row in zip(weights, counted, strict=True) if row.profiled_ms]
    return Row(
        ms,
        math.sqrt(variance / total) / ms,
        sum(row.count for row in counted),
        counted[-1].origin,
        math.fsum(weight * value for weight, value in profiled) / sum(weight for weight, _ in profiled)
        if profiled
        else None,
    )


def _history(name: str, table: LatencyTable) -> dict[str, Any]:
    return {
        "name": name,
        "rows": len(table.rows),
        "intercept_ms": table.intercept_ms,
        "scale": 1.0,
        "provenance": table.provenance,
    }


def _scale(first: LatencyTable, second: LatencyTable, before: str, name: str) -> float:
    """What the second table's times are multiplied by. Raises TableError where the tables cannot be joined."""
    for kind, a, b in (
        ("targets", to_json(first.target), to_json(second.target)),
        ("fingerprints", first.fingerprint, second.fingerprint),
    ):
        different = [f"{key} is {a.get(key)!r} and {b.get(key)!r}" for key in {**a, **b} if a.get(key) != b.get(key)]
        if different:
            raise TableError(
                f"{before} and {name} have different {kind}: {'; '.join(different)}. "
                "Only tables of one target on one machine can be merged"
            )
    if not first.anchors and not second.anchors:
        return 1.0
    if not first.anchors or not second.anchors:
        lacking, other = (before, name) if not first.anchors else (name, before)
        raise TableError(
            f"{lacking} has no anchors, {other} has: their times have no common scale. Profile {lacking}'s blocks on "
            "this machine, or merge it with tables of its own kind"
        )
    ours = {anchor.name: anchor.ms for anchor in first.anchors}
    same_space = first.provenance.get("space") == second.provenance.get("space")
    ratios = [ours[anchor.name] / anchor.ms for anchor in second.anchors if same_space and anchor.name in ours]
    if not ratios:
        raise TableError(
            f"{before} and {name} have no anchor in common: their times have no common scale. "
            "Profile both spaces with the same anchors, or keep the tables apart"
        )
    if max(ratios) / min(ratios) - 1 > LARGEST_DISAGREEMENT:
        raise TableError(
            f"the anchors of {before} and {name} disagree: the first's are {min(ratios):.3g} to {max(ratios):.3g} "
            "times the second's, so the machine was in another state. Profile one of them again"
        )
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def _merge(first: LatencyTable, second: LatencyTable, before: str, name: str, prefer: str | None) -> LatencyTable:
    rows = dict(first.rows)
    for key, row in second.rows.items():
        if key not in rows or prefer == "last":
            rows[key] = row
        elif prefer is None and rows[key].ms == row.ms:
            continue
        elif prefer == "pooled":
            rows[key] = pooled_row([rows[key], row])
        else:
            raise TableError(
                f"{key} is {rows[key].ms:.6g} ms in {before} and {row.ms:.6g} ms in {name}"
                f"{_others(first, second)}; say which to take: --prefer last, or --prefer pooled for their average"
            )
    fusions = first.fusion_ms | {
        operator: _settled(f"the fusion {operator}", first.fusion_ms.get(operator, ms), ms, before, name, prefer)
        for operator, ms in second.fusion_ms.items()
    }
    return replace(
        first,
        intercept_ms=_intercept(first, second, before, name, prefer),
        models=_models(first.models, second.models),
        rows=rows,
        fusion_ms=fusions,
    )


def _others(first: LatencyTable, second: LatencyTable) -> str:
    different = sum(first.rows[key].ms != row.ms for key, row in second.rows.items() if key in first.rows)
    return f" (and {different - 1} more differ)" if different > 1 else ""


def _intercept(first: LatencyTable, second: LatencyTable, before: str, name: str, prefer: str | None) -> float:
    smallest = min((model.ms for model in (*first.models, *second.models)), default=0.0)
    if abs(first.intercept_ms - second.intercept_ms) <= NEGLIGIBLE * smallest and prefer is None:
        return (first.intercept_ms + second.intercept_ms) / 2
    return _settled("the intercept", first.intercept_ms, second.intercept_ms, before, name, prefer)


def _settled(what: str, first: float, second: float, before: str, name: str, prefer: str | None) -> float:
    """A number that the rows were calibrated with. Raises TableError where it differs and nothing is preferred."""
    if first == second or prefer == "last":
        return second
    if prefer == "pooled":
        return (first + second) / 2
    raise TableError(
        f"{what} is {first:.4g} ms in {before} and {second:.4g} ms in {name}, and rows are only right with their own; "
        "say which to take: --prefer last, or --prefer pooled for the average"
    )


def _models(first: Sequence[Model], second: Sequence[Model]) -> tuple[Model, ...]:
    """Every model once, as it was first measured; what was fitted in one of the tables is no longer held out."""

    models: dict[str, Model] = {}
    for model in (*first, *second):
        known = models.setdefault(model.name, model)
        role = next(role for role in ROLES if role in (known.role, model.role))
        models[model.name] = replace(known, role=role)
    return tuple(models.values())
