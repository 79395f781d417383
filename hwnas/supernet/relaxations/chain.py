"""Chains of blocks with elastic depth, relaxed: a layer is an edge between the options of its slots, and to skip it.

The layers that the least depth has cannot be skipped. All others of a part have one shape, so the network without some
of them is that of the architecture whose standing layers moved up: computed the same, weights included.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hwnas.errors import SpaceError
from hwnas.space import Arch, IntMatrix, Option, SearchSpace
from hwnas.supernet.relaxations import fixed_options
from hwnas.supernet.relaxed import Choice, Edge


@dataclass(frozen=True)
class Part:
    """Layers at the positions `places`, of which `depth_slot` says how many stand.

    After that slot come those of the first layer, `slots` of them, then those of the next.
    """

    depth_slot: int
    places: tuple[str, ...]
    slots: int


class ChainRelaxation:
    """Choices of an edge: the options of its layer's slots (the last fastest), then, where depth allows it, to skip.

    `fixed` says the options of `fixed_slots`, which no edge decides. Raises SpaceError if a depth between the least and
    the largest is no option.
    """

    def __init__(
        self, space: SearchSpace, parts: Sequence[Part], fixed_slots: Sequence[int], fixed: Mapping[str, Option]
    ) -> None:
        self.space, self._parts = space, parts
        self._fixed = fixed_options(space, tuple(fixed_slots), fixed)
        self._chosen: list[list[tuple[int, ...]]] = []  # by part: the options of each choice but skipping
        edges: list[Edge] = []
        for part in parts:
            depths = [int(depth) for depth in space.slots[part.depth_slot].options]
            if sorted(depths) != list(range(min(depths), len(part.places) + 1)):
                raise SpaceError(
                    f"a relaxation skips one layer at a time, so every depth from {min(depths)} to {max(depths)} must "
                    f"be an option of {space.slots[part.depth_slot].name}; depths are {depths}"
                )
            slots = space.slots[part.depth_slot + 1 : part.depth_slot + 1 + part.slots]
            self._chosen.append(list(itertools.product(*(range(len(slot.options)) for slot in slots))))
            names = tuple(
                ", ".join(
                    f"{slot.name.rpartition('.')[2]} {slot.options[option]}"
                    for slot, option in zip(slots, options, strict=True)
                )
                or "stand"
                for options in self._chosen[-1]
            )
            edges += [
                Edge(name, (*names, "skip") if layer >= min(depths) else names)
                for layer, name in enumerate(part.places)
            ]
        self.edges = tuple(edges)

    def archs(self, choices: IntMatrix) -> IntMatrix:
        archs = np.zeros((len(choices), len(self.space.slots)), dtype=np.int64)
        for slot, option in self._fixed.items():
            archs[:, slot] = option
        begin = 0
        for part, chosen in zip(self._parts, self._chosen, strict=True):
            layers = len(part.places)
            own = np.asarray(choices)[:, begin : begin + layers]
            begin += layers
            skipped = own == len(chosen)
            # Standing layers first, in their order; what is skipped comes last, where the depth makes it inactive.
            order = np.argsort(skipped, axis=1, kind="stable")
            moved = np.take_along_axis(np.where(skipped, 0, own), order, axis=1)
            option_of = np.zeros(layers + 1, dtype=np.int64)
            for option, depth in enumerate(self.space.slots[part.depth_slot].options):
                option_of[int(depth)] = option
            archs[:, part.depth_slot] = option_of[layers - skipped.sum(axis=1)]
            slots = slice(part.depth_slot + 1, part.depth_slot + 1 + layers * part.slots)
            archs[:, slots] = np.array(chosen, dtype=np.int64)[moved].reshape(len(choices), -1)
        return self.space.canonical(archs)

    def usable(self, archs: IntMatrix) -> NDArray[np.bool_]:
        return np.ones(len(archs), dtype=bool)

    def body(self) -> nn.Module:
        by_choice = {edge.name for edge in self.edges}
        blocks = {position.name: block for position, block in self.space.placed_blocks(self._arch({}))}
        layers = {name: block.module() for name, block in blocks.items() if name not in by_choice}
        for number, edge in enumerate(self.edges):
            candidates: list[nn.Module] = []
            for choice in range(len(edge.options) - ("skip" in edge.options)):
                placed = self.space.placed_blocks(self._arch({number: choice}))
                candidates += [block.module() for position, block in placed if position.name == edge.name]
            if "skip" in edge.options:
                candidates.append(nn.Identity())
            layers[edge.name] = Choice(number, candidates)
        return nn.Sequential(OrderedDict((name, layers[name]) for name in blocks))

    def sources(self, choices: Sequence[int]) -> Mapping[str, str]:
        by_choice = {edge.name for edge in self.edges}
        found = {position.name: position.name for position in self.space.positions if position.name not in by_choice}
        begin = 0
        for part, chosen in zip(self._parts, self._chosen, strict=True):
            edges = range(begin, begin + len(part.places))
            begin = edges.stop
            standing = [edge for edge in edges if choices[edge] < len(chosen)]
            for place, edge in zip(part.places, standing, strict=False):
                found[place] = f"{self.edges[edge].name}.candidates.{choices[edge]}"
        return found

    def _arch(self, chosen: Mapping[int, int]) -> Arch:
        """The deepest architecture with these choices, all others 0."""
        (row,) = self.archs(np.array([[chosen.get(edge, 0) for edge in range(len(self.edges))]], dtype=np.int64))
        return tuple(int(option) for option in row)
