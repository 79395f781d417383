"""Numbers the distinct blocks of a space, so that what a network consists of is one gather per position.

For every position there is a small array over the options of the slots that decide it; an architecture's blocks are
looked up in all of them at once. Latency, MACs and parameters of a million architectures are sums of such look-ups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from hwnas.blocks import Block
from hwnas.errors import SpaceError
from hwnas.space import IntMatrix, SearchSpace

FloatVector = NDArray[np.float64]
FloatMatrix = NDArray[np.float64]

# Options of a position's slots are enumerated; far above this the position depends on too many slots at once.
MAX_COMBINATIONS = 100_000


class BlockIndex:
    """The distinct blocks of a space: `blocks[i]` has key `keys[i]`."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        numbers: dict[Block, int] = {}
        self._lookup: list[NDArray[np.int64]] = []
        self._strides: list[NDArray[np.int64]] = []
        for place, position in enumerate(space.positions):
            extents = [len(space.slots[slot].options) for slot in position.slots]
            if np.prod(extents, dtype=float) > MAX_COMBINATIONS:
                raise SpaceError(
                    f"position {position.name!r} of {space.name} depends on {len(extents)} slots with "
                    f"{np.prod(extents, dtype=float):.0f} combinations; split it (limit {MAX_COMBINATIONS})"
                )
            lookup = [
                -1 if block is None else numbers.setdefault(block, len(numbers))
                for _, block in space.position_blocks(place)
            ]
            self._lookup.append(np.array(lookup, dtype=np.int64))
            self._strides.append(
                np.array([int(np.prod(extents[axis + 1 :])) for axis in range(len(extents))], dtype=np.int64)
            )
        # One matrix product and one gather serve all positions: strides by slot and position, tables end to end.
        self._all_strides = np.zeros((len(space.slots), len(space.positions)))
        for place, (position, strides) in enumerate(zip(space.positions, self._strides, strict=True)):
            np.add.at(self._all_strides[:, place], list(position.slots), strides)
        self._starts = np.cumsum([0, *(len(lookup) for lookup in self._lookup)])[:-1, None]
        self._all_lookup = np.concatenate([np.empty(0, dtype=np.int64), *self._lookup])
        self.blocks = tuple(numbers)
        self.keys = tuple(block.key for block in self.blocks)

    def places(self, number: int) -> Iterator[tuple[int, IntMatrix]]:
        """Each position that can hold block `number`, with the (n, slots) options of its slots that put it there."""
        for place, (position, lookup) in enumerate(zip(self.space.positions, self._lookup, strict=True)):
            flat = np.flatnonzero(lookup == number)
            if len(flat):
                extents = self.space.cardinalities[list(position.slots)]
                yield place, flat[:, None] // self._strides[place] % extents

    def numbers(self, archs: IntMatrix) -> IntMatrix:
        """(n, slots) canonical -> (n, positions) block numbers, -1 where nothing stands."""
        return np.ascontiguousarray(self._all_lookup[self._places(archs)].T)

    def counts(self, archs: IntMatrix) -> FloatMatrix:
        """(n, slots) canonical -> (n, blocks): how often each block stands in each network."""
        counts = np.zeros((len(archs), len(self.keys)))
        for row, numbers in zip(counts, self.numbers(archs), strict=True):
            np.add.at(row, numbers[numbers >= 0], 1.0)
        return counts

    def used(self, archs: IntMatrix) -> list[NDArray[np.int64]]:
        """The distinct block numbers of each network."""
        return [np.unique(row[row >= 0]) for row in self.numbers(archs)]

    def costs(self, values: Mapping[str, float] | FloatVector) -> list[FloatVector]:
        """Per position, the value of each combination of its slots' options (last slot fastest, 0 where no block is).

        `values` gives each key's value, or is a (blocks,) vector.
        """
        vector = np.array([values[key] for key in self.keys]) if isinstance(values, Mapping) else values
        padded = np.append(vector, 0.0)
        return [padded[lookup] for lookup in self._lookup]

    def total(self, archs: IntMatrix, costs: list[FloatVector]) -> FloatVector:
        """(n, slots) canonical -> (n,) sum over the positions of the `costs` of `costs()`."""
        total = np.zeros(len(archs))
        # Added in the order of the positions: `sum` would round one architecture otherwise than many.
        for values in np.concatenate([np.empty(0), *costs])[self._places(archs)]:
            total += values
        return total

    def _places(self, archs: IntMatrix) -> NDArray[np.int64]:
        """(n, slots) -> (positions, n) where in the tables, laid end to end, each position's combination is."""
        # In floating point, where a matrix product is fast; exact, as all numbers are far below 2^53.
        flat = self._all_strides.T @ np.asarray(archs, dtype=np.float64).T
        return np.asarray(flat.astype(np.int64) + self._starts)
