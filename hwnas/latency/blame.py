"""Which blocks explain that a latency table errs: those of one network, and those of all. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.latency.index import BlockIndex
from hwnas.space import Arch, IntMatrix, SearchSpace
from hwnas.validation import BlockError, SystematicError
from hwprof.table import LatencyTable

FloatVector = NDArray[np.float64]
FloatMatrix = NDArray[np.float64]

# Blocks of one network that are named.
SHOWN = 6
# A block or option in fewer networks than this, or absent from fewer, shows nothing systematic.
LEAST = 3
PERMUTATIONS = 999
SIGNIFICANT = 0.05
MOST = 5
# Two columns that are correlated more than this cannot be told apart.
ALIKE = 0.95


def profiler_shift(index: BlockIndex, table: LatencyTable, profiled: Mapping[Arch, Mapping[int, float]]) -> float:
    """How much longer profiled blocks take now than in the table: median over measured rows; 1 if there are too few.

    Reading the profiler's clock takes longer in one session than in the next. Networks that are known to be predicted
    well (the anchors) show by how much; what differs beyond that is the block's.
    """
    shifts = []
    for arch, times_ms in profiled.items():
        for position, number in enumerate(index.numbers(np.array([arch]))[0]):
            row = table.rows[index.keys[number]] if number >= 0 else None
            if row is not None and row.origin == "measured" and row.profiled_ms and times_ms.get(position):
                shifts.append(times_ms[position] / row.profiled_ms)
    return float(np.median(shifts)) if len(shifts) >= LEAST else 1.0


def block_errors(
    index: BlockIndex, table: LatencyTable, arch: Arch, times_ms: Mapping[int, float], shift: float, error_ms: float
) -> tuple[tuple[BlockError, ...], float]:
    """The blocks of a network whose profiled times differ most from the table's, and the share of the error by all.

    times_ms: position -> profiled ms now; shift: of `profiler_shift`; error_ms: predicted - measured. A row without a
    profiled time (an imported one) is compared by its ms.
    """
    placed = [
        (place, index.keys[number]) for place, number in enumerate(index.numbers(np.array([arch]))[0]) if number >= 0
    ]
    rows = [table.rows[key] for _, key in placed]
    # One ratio for all of the network: of a block that the runtime leaves almost nothing of, its own means nothing.
    ratio = sum(row.ms for row in rows) / sum(row.profiled_ms or row.ms for row in rows)
    found = []
    for (place, key), row in zip(placed, rows, strict=True):
        then_ms, now_ms = row.profiled_ms or row.ms, times_ms.get(place, 0.0) / shift
        excess_ms = (then_ms - now_ms) * ratio
        name = index.space.positions[place].name
        found.append(BlockError(name, key, row.origin, row.ms, then_ms, now_ms, excess_ms, excess_ms / error_ms))
    found.sort(key=lambda block: -abs(block.excess_ms))
    return tuple(found[:SHOWN]), sum(block.share for block in found)


@dataclass(frozen=True)
class Suspects:
    """What may be off systematically: `columns` (n, suspects) is each one's share of each network's predicted time."""

    kinds: tuple[str, ...]
    names: tuple[str, ...]
    origins: tuple[str, ...]
    columns: FloatMatrix


def suspects(index: BlockIndex, table: LatencyTable, archs: IntMatrix, predicted_ms: FloatVector) -> Suspects:
    """Every block and every option of a slot that some of the networks (n, slots) have and some have not."""
    rows = [table.rows[key] for key in index.keys]
    blocks = index.counts(archs) * np.array([row.ms for row in rows]) / predicted_ms[:, None]
    options, names = option_columns(index.space, archs)
    return Suspects(
        ("block",) * len(rows) + ("option",) * len(names),
        (*index.keys, *names),
        (*(row.origin for row in rows), *("",) * len(names)),
        np.concatenate([blocks, options], axis=1),
    )


def option_columns(space: SearchSpace, archs: IntMatrix) -> tuple[FloatMatrix, list[str]]:
    """(n, slots) canonical -> (n, options) 1 where a network has an option in a slot that is active in it, and names.

    A slot is active where another option makes another network: what an absent layer's slots hold means nothing.
    """
    columns, names = [], []
    for number, slot in enumerate(space.slots):
        other = archs.copy()
        other[:, number] = (other[:, number] + 1) % len(slot.options)
        active = (space.canonical(other) != space.canonical(archs)).any(axis=1)
        for option, value in enumerate(slot.options):
            columns.append((active & (archs[:, number] == option)).astype(float))
            names.append(f"{slot.name} = {value}")
    return np.array(columns).T.reshape(len(archs), len(names)), names


def systematic_errors(errors: FloatVector, found: Suspects, rng: np.random.Generator) -> tuple[SystematicError, ...]:
    """The blocks and options whose presence goes with an error, at most MOST of them, the clearest first.

    errors: (n,) predicted / measured - 1. Forward selection: the suspect that is most correlated with what is left of
    the errors is taken in while its correlation is larger than the largest of all suspects under a permutation of what
    is left, in all but 5% of permutations (Westfall and Young 1993: corrected for their number).
    Too few networks show nothing.
    """
    if len(errors) < 2 * LEAST:
        return ()
    present = (found.columns > 0).sum(axis=0)
    candidates = np.flatnonzero((present >= LEAST) & (np.ptp(found.columns, axis=0) > 0))
    varied = np.isin(present[candidates], range(LEAST, len(errors) - LEAST + 1))
    # A block that all networks have still varies in its share; an option that all have does not.
    blocks = np.array([found.kinds[number] == "block" for number in candidates], dtype=bool)
    candidates = candidates[varied | blocks]
    taken: list[tuple[int, float, int]] = []
    while len(candidates) and len(taken) < min(MOST, len(errors) - 3):
        design = _design(found.columns, [number for number, _, _ in taken])
        rest, columns = _left(errors, design), _left(found.columns[:, candidates], design)
        norms = np.sqrt((columns**2).sum(axis=0))
        original = np.sqrt((_left(found.columns[:, candidates], design[:, :1]) ** 2).sum(axis=0))
        kept = norms > 1e-3 * original  # what the taken ones already say is not said again
        candidates, columns = candidates[kept], columns[:, kept] / norms[kept]
        if not len(candidates) or not rest.any():
            break
        strength = np.abs(rest @ columns)
        best = int(np.argmax(strength))
        chance = np.abs(np.stack([rng.permutation(rest) for _ in range(PERMUTATIONS)]) @ columns).max(axis=1)
        p_value = (1 + int((chance >= strength[best]).sum())) / (PERMUTATIONS + 1)
        if p_value > SIGNIFICANT:
            break
        alike = int((columns[:, best] @ columns > ALIKE).sum()) - 1
        taken.append((int(candidates[best]), p_value, alike))
    return _described(errors, found, taken, present)


def _described(
    errors: FloatVector, found: Suspects, taken: Sequence[tuple[int, float, int]], present: NDArray[np.int64]
) -> tuple[SystematicError, ...]:
    """Size and standard error of each, from one least squares fit of all."""
    if not taken:
        return ()
    design = _design(found.columns, [number for number, _, _ in taken])
    sizes = np.linalg.lstsq(design, errors, rcond=None)[0]
    variance = float(((errors - design @ sizes) ** 2).sum()) / max(1, len(errors) - design.shape[1])
    standard_errors = np.sqrt(variance * np.diag(np.linalg.pinv(design.T @ design)))
    return tuple(
        SystematicError(
            kind="block" if found.kinds[number] == "block" else "option",
            name=found.names[number],
            origin=found.origins[number],
            networks=int(present[number]),
            error=float(size),
            standard_error=float(standard_error),
            p_value=p_value,
            alike=alike,
        )
        for (number, p_value, alike), size, standard_error in zip(taken, sizes[1:], standard_errors[1:], strict=True)
    )


def _design(columns: FloatMatrix, taken: Sequence[int]) -> FloatMatrix:
    return np.concatenate([np.ones((len(columns), 1)), columns[:, list(taken)]], axis=1)


def _left(values: NDArray[np.float64], design: FloatMatrix) -> NDArray[np.float64]:
    """What least squares on the design leaves of each column."""
    left: NDArray[np.float64] = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return left
