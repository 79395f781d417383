"""Slots, architectures and search spaces: what can be chosen, and what each choice puts on the hardware.

An architecture is a tuple of small integers, one option index per slot. What it means to hardware is a list of blocks,
one per *position*: a place in the network whose block is decided by a few slots. That is what lets a latency table
cost a million architectures with a handful of gathers, whatever the space (`latency/predict.py`).
"""

from __future__ import annotations

import itertools
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import SpaceError

if TYPE_CHECKING:
    from torch import nn

    from hwnas.blocks import Block

Arch = tuple[int, ...]
IntMatrix = NDArray[np.int64]
Option = int | float | str


@dataclass(frozen=True)
class Slot:
    """One choice of a search space: its name and its options, in the order that an Arch's indices count them."""

    name: str
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        if not self.options or len(set(self.options)) != len(self.options):
            raise SpaceError(f"slot {self.name!r} needs at least one option and no option twice, got {self.options}")


@dataclass(frozen=True)
class Position:
    """A place in the network. `name` is the path of its module in the built network, `slots` decide its block."""

    name: str
    slots: tuple[int, ...]


class SearchSpace(ABC):
    """A finite set of networks. A space of your own gives `slots`, `positions` and the four abstract methods.

    The built network must hold, for every position whose block is not None, that block's module at the path
    `position.name`, and must compute nothing outside of these modules: so every nanosecond measured in a whole network
    belongs to one block. `hwnas.testing.spaces.check_space` verifies all of it.
    """

    name: str
    slots: tuple[Slot, ...]
    positions: tuple[Position, ...]
    num_classes: int

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The arguments that rebuild this space, JSON-serialisable."""

    @abstractmethod
    def block_at(self, position: int, options: Sequence[int]) -> Block | None:
        """The block at a position, given the option indices of that position's slots; None where nothing stands."""

    @abstractmethod
    def input_shape(self, arch: Arch) -> tuple[int, int, int]:
        """(channels, height, width) of one input image."""

    @abstractmethod
    def build(self, arch: Arch) -> nn.Module:
        """A freshly initialised network: (batch, *input_shape) float -> (batch, num_classes) logits."""

    def canonical(self, archs: IntMatrix) -> IntMatrix:
        """(n, slots) -> (n, slots): one representative per network, inactive slots set to 0."""
        return archs

    @property
    def size(self) -> int:
        """How many index tuples there are (different tuples can be the same network, see `canonical`)."""
        size = 1
        for slot in self.slots:
            size *= len(slot.options)
        return size

    @property
    def cardinalities(self) -> IntMatrix:
        """(slots,) number of options of each slot."""
        return np.array([len(slot.options) for slot in self.slots], dtype=np.int64)

    def check(self, arch: Iterable[int]) -> Arch:
        """The architecture as a canonical tuple. Raises SpaceError if it is not one of this space."""
        try:
            arch = tuple(operator.index(index) for index in arch)
        except TypeError as error:
            raise SpaceError(f"an architecture of {self.name} is option indices, got {arch}: {error}") from None
        if len(arch) != len(self.slots):
            raise SpaceError(f"{self.name} has {len(self.slots)} slots, the architecture has {len(arch)}: {arch}")
        for slot, index in zip(self.slots, arch, strict=True):
            if not 0 <= index < len(slot.options):
                raise SpaceError(
                    f"slot {slot.name!r} of {self.name} has options 0..{len(slot.options) - 1} {slot.options}, "
                    f"got {index}"
                )
        return tuple(int(index) for index in self.canonical(np.array([arch], dtype=np.int64))[0])

    def blocks(self, arch: Arch) -> list[Block]:
        """What hardware sees: the blocks of the network in the order of the positions."""
        return [block for _, block in self.placed_blocks(arch)]

    def placed_blocks(self, arch: Arch) -> list[tuple[Position, Block]]:
        """The blocks of the network, each with its position."""
        arch = self.check(arch)
        found = [
            (position, self.block_at(index, [arch[slot] for slot in position.slots]))
            for index, position in enumerate(self.positions)
        ]
        return [(position, block) for position, block in found if block is not None]

    def sources(self, arch: Arch) -> list[tuple[int, ...]]:
        """What each block of `placed_blocks` reads: numbers of blocks before it, -1 for the image; here a chain.

        Runtimes fuse and share work along these edges (`latency/fusion.py`); spaces of other networks override it.
        """
        return [(number - 1,) for number in range(len(self.placed_blocks(arch)))]

    @property
    def largest_input(self) -> tuple[int, int, int]:
        """The largest input image of any architecture, provided that one slot decides the size."""
        first = (0,) * len(self.slots)
        single_choices = (
            (*first[:slot], option, *first[slot + 1 :])
            for slot in range(len(self.slots))
            for option in range(len(self.slots[slot].options))
        )
        return max((self.input_shape(arch) for arch in single_choices), key=lambda shape: shape[1] * shape[2])

    def position_blocks(self, position: int) -> Iterable[tuple[tuple[int, ...], Block | None]]:
        """Every combination of option indices of a position's slots (last slot fastest), with its block."""
        slots = self.positions[position].slots
        for options in itertools.product(*(range(len(self.slots[slot].options)) for slot in slots)):
            yield options, self.block_at(position, options)

    def sample(self, n: int, rng: np.random.Generator) -> IntMatrix:
        """(n, slots) random canonical architectures: every option of every slot equally likely; can repeat."""
        return self.canonical(rng.integers(0, self.cardinalities, size=(n, len(self.slots)), dtype=np.int64))

    def neighbours(self, arch: Arch) -> IntMatrix:
        """(k, slots): the other canonical architectures one step away, each once. Here a step changes one slot."""
        steps = [
            (*arch[:slot], option, *arch[slot + 1 :])
            for slot, count in enumerate(self.cardinalities.tolist())
            for option in range(count)
            if option != arch[slot]
        ]
        found = unique_archs(self.canonical(np.array(steps, dtype=np.int64).reshape(-1, len(self.slots))))
        others: IntMatrix = found[(found != np.array(self.check(arch))).any(axis=1)]
        return others

    def start_archs(self) -> IntMatrix:
        """(k, slots): small canonical architectures that a search may begin with; here none."""
        return np.empty((0, len(self.slots)), dtype=np.int64)

    def features(self, archs: IntMatrix) -> NDArray[np.float64]:
        """(n, slots) canonical -> (n, k) counts that say what a network computes, the same for those that do the same.

        Models of accuracy use them beside the slots. Here none; worth giving where different slots make equal networks.
        """
        return np.empty((len(archs), 0))

    def describe(self, arch: Arch) -> dict[str, Option]:
        """Slot name -> chosen option, of the canonical architecture."""
        return {slot.name: slot.options[index] for slot, index in zip(self.slots, self.check(arch), strict=True)}

    def arch_of(self, choice: Mapping[str, Option]) -> Arch:
        """The architecture of a `describe`-like mapping. Raises SpaceError on a missing or unknown name or option."""
        unknown = sorted(set(choice) - {slot.name for slot in self.slots})
        if unknown:
            raise SpaceError(f"{self.name} has no slot {unknown[0]!r}; its slots: {[s.name for s in self.slots]}")
        indices = []
        for slot in self.slots:
            if slot.name not in choice:
                raise SpaceError(f"no option given for slot {slot.name!r} of {self.name}")
            if choice[slot.name] not in slot.options:
                raise SpaceError(f"slot {slot.name!r} has options {slot.options}, got {choice[slot.name]!r}")
            indices.append(slot.options.index(choice[slot.name]))
        return self.check(indices)


def format_arch(arch: Iterable[int]) -> str:
    """An architecture as text, e.g. '0-2-1': what tables, trials and files carry."""
    return "-".join(str(int(index)) for index in arch)


def parse_arch(text: str) -> Arch:
    """The inverse of `format_arch`. Raises SpaceError on anything else."""
    if not isinstance(text, str) or not re.fullmatch("[0-9]{1,9}(-[0-9]{1,9})*", text):
        raise SpaceError(f"an architecture is written like 0-2-1, got {str(text)[:200]!r}")
    return tuple(int(part) for part in text.split("-"))


def rows_of(archs: IntMatrix) -> list[Arch]:
    """(n, slots) -> n architectures."""
    return [tuple(int(option) for option in row) for row in archs]


def unique_archs(archs: IntMatrix) -> IntMatrix:
    """(n, slots) -> (m, slots): duplicates removed, first occurrences kept in order."""
    _, first = np.unique(archs, axis=0, return_index=True)
    return archs[np.sort(first)]
