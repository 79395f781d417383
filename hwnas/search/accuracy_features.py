"""What a model of accuracy reads of an architecture: options that are there, their levels, how often each occurs.

A slot that a smaller depth switches off is "not there", which is not its option 0: it counts for nothing. Of the slots
that are there, every option is a column, so is the level of a number (its logarithm where it is above zero: depths,
kernels, widths, resolutions), and how often an option occurs among slots of one kind, over the network and over each
stage; slots are of one kind if their names differ in numbers only (`stage0.1.kernel`, `stage3.0.kernel`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import PredictorError
from hwnas.search.problem import FloatMatrix, FloatVector
from hwnas.space import IntMatrix, SearchSpace, Slot, format_arch

Features = Callable[[IntMatrix], FloatMatrix]
SingleMatrix = NDArray[np.float32]

_LARGEST = 1e30  # of a feature: single precision ends at 3e38
_PROBES = 32  # random architectures that show which slots switch others off


class Presence:
    """Which slots of canonical architectures are there. Found by asking `canonical`, whatever the space."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        rows = space.sample(_PROBES, np.random.default_rng(0))
        there = self._each(rows)
        # A slot that switches others must be asked about alone; all the others can be asked about at once.
        switches = np.zeros(len(space.slots), dtype=bool)
        for slot in range(len(space.slots)):
            for option in range(len(space.slots[slot].options)):
                changed = rows.copy()
                changed[:, slot] = option
                others = self._each(space.canonical(changed)) != there
                others[:, slot] = False
                switches[slot] |= bool(others.any())
        absent = ~there.all(axis=0)
        self._alone = np.flatnonzero(switches & absent)
        self._together = np.flatnonzero(~switches & absent)

    def __call__(self, archs: IntMatrix) -> NDArray[np.bool_]:
        """(n, slots) canonical -> (n, slots): False where a slot is switched off."""
        there = np.ones(archs.shape, dtype=bool)
        if len(self._together):
            there[:, self._together] = self._asked(archs, self._together)
        for slot in self._alone:
            there[:, [slot]] = self._asked(archs, np.array([slot]))
        return there

    def _each(self, archs: IntMatrix) -> NDArray[np.bool_]:
        there = np.ones(archs.shape, dtype=bool)
        for slot in np.flatnonzero(self.space.cardinalities > 1):
            there[:, [slot]] = self._asked(archs, np.array([slot]))
        return there

    def _asked(self, archs: IntMatrix, slots: IntMatrix) -> NDArray[np.bool_]:
        """(n, k): whether these slots keep another option than 0, given to those that have 0."""
        raised = archs.copy()
        raised[:, slots] = np.maximum(archs[:, slots], 1)
        return np.asarray(self.space.canonical(raised)[:, slots] > 0)


@dataclass(frozen=True)
class Encoder:
    """Turns architectures into features. `encoder_of` makes one.

    `raw` are (n, columns): the options, `space.features` and the extra features, less their `mean`. Each of `blocks`
    takes them to what a kernel sees, by a matrix (columns, k), scaled to a mean square length of 1 over the rows of the
    fit: `options`; `levels` of numbers and of what is there; `counts` of options; `same`, what the space says of equal
    networks; `extra`. Blocks without columns are left out.
    """

    presence: Presence
    extra: Features | None
    mean: FloatVector
    blocks: dict[str, FloatMatrix]

    def raw(self, archs: IntMatrix) -> SingleMatrix:
        """(n, slots) canonical -> (n, columns). Raises PredictorError if an extra feature is not finite."""
        options, others = _columns(self.presence, self.extra, archs)
        wide = options.shape[1]
        # In single precision, which is what makes predictions fast, once large features are centred.
        options -= self.mean[:wide].astype(np.float32)
        return np.concatenate([options, (others - self.mean[wide:]).astype(np.float32)], axis=1)


def encoder_of(presence: Presence, archs: IntMatrix, extra: Features | None) -> Encoder:
    """The encoder whose scales are those of (n, slots) canonical architectures of the space of `presence`."""
    space = presence.space
    raw = np.concatenate(_columns(presence, extra, archs), axis=1, dtype=np.float64)
    mean = raw.mean(axis=0)
    centred = raw - mean
    options = int(space.cardinalities.sum())
    same = space.features(archs[:1]).shape[1]
    columns = np.eye(raw.shape[1])
    blocks = {
        "options": columns[:, :options],
        "levels": _unit(raw, _levels(space.slots, raw.shape[1], presence, archs)),
        "counts": _counts(space.slots, raw.shape[1]),
        "same": columns[:, options : options + same],
        "extra": _unit(raw, columns[:, options + same :]),
    }
    scaled = {name: _scaled(centred, matrix) for name, matrix in blocks.items()}
    return Encoder(presence, extra, mean, {name: matrix for name, matrix in scaled.items() if matrix.size})


def _columns(presence: Presence, extra: Features | None, archs: IntMatrix) -> tuple[SingleMatrix, FloatMatrix]:
    """(n, options of all slots) zeros and ones, and (n, other features)."""
    space = presence.space
    starts = np.concatenate([[0], np.cumsum(space.cardinalities)])
    options = np.zeros((len(archs), int(starts[-1])), dtype=np.float32)
    np.put_along_axis(options, archs + starts[:-1], presence(archs).astype(np.float32), axis=1)
    return options, np.concatenate([space.features(archs), _extra(extra, archs)], axis=1)


def _extra(extra: Features | None, archs: IntMatrix) -> FloatMatrix:
    if extra is None:
        return np.empty((len(archs), 0))
    features = np.asarray(extra(archs), dtype=np.float64)
    if features.ndim != 2 or len(features) != len(archs):
        raise PredictorError(f"extra features of {len(archs)} architectures are (n, features), got {features.shape}")
    broken = np.flatnonzero(~(np.abs(features) < _LARGEST).all(axis=1))
    if len(broken):
        raise PredictorError(
            f"the extra features of architecture {format_arch(archs[broken[0]])} are not finite, or {_LARGEST:g} and "
            f"more: {features[broken[0]].tolist()}; leave it out, or give logarithms"
        )
    return features


def _levels(slots: tuple[Slot, ...], columns: int, presence: Presence, archs: IntMatrix) -> FloatMatrix:
    """(columns, k): a number's level among its options, and whether a slot is there, each different one once."""
    there, found = presence(archs), []
    seen: set[bytes] = set()
    start = 0
    for number, slot in enumerate(slots):
        stop = start + len(slot.options)
        values = [float(option) for option in slot.options if not isinstance(option, str)]
        if len(values) == len(slot.options) > 1:
            level = np.log(values) if min(values) > 0 else np.array(values)
            found.append(_column(columns, start, level - level.mean()))
        if not there[:, number].all() and there[:, number].tobytes() not in seen:
            seen.add(there[:, number].tobytes())
            found.append(_column(columns, start, np.ones(stop - start)))
        start = stop
    return np.stack(found, axis=1) if found else np.empty((columns, 0))


def _column(columns: int, start: int, values: FloatVector) -> FloatVector:
    column = np.zeros(columns)
    column[start : start + len(values)] = values
    return column


def _counts(slots: tuple[Slot, ...], columns: int) -> FloatMatrix:
    """(columns, k): how often each option occurs among the slots of a kind, of the network and of each part of it."""
    starts = np.cumsum([0, *(len(slot.options) for slot in slots)])
    alike: dict[tuple[str, tuple[object, ...]], dict[int, None]] = {}
    for number, slot in enumerate(slots):
        name = slot.name
        # From the last number on: stage0.#.kernel is a part of stage#.#.kernel.
        for place in reversed(list(re.finditer(r"\d+", slot.name))):
            name = f"{name[: place.start()]}#{name[place.end() :]}"
            alike.setdefault((name, slot.options), {})[number] = None
    found = []
    for (_, options), members in alike.items():
        if len(members) > 1 and len(options) > 1:
            for option in range(len(options)):
                column = np.zeros(columns)
                column[starts[list(members)] + option] = 1.0
                found.append(column)
    return np.stack(found, axis=1) if found else np.empty((columns, 0))


def _unit(raw: FloatMatrix, matrix: FloatMatrix) -> FloatMatrix:
    """Every column that varies, by more than rounding, scaled to a deviation of 1."""
    spread = (raw @ matrix).std(axis=0)
    kept = spread > 1e-9 * (np.abs(raw).max(axis=0) @ np.abs(matrix))
    return np.asarray(matrix[:, kept] / spread[kept])


def _scaled(centred: FloatMatrix, matrix: FloatMatrix) -> FloatMatrix:
    """Without columns that never vary, and the whole scaled to a mean square length of 1."""
    values = centred @ matrix
    matrix = matrix[:, np.ptp(values, axis=0) > 1e-6]
    length = np.sqrt((values**2).sum(axis=1).mean())
    return np.asarray(matrix / length) if matrix.size else matrix
