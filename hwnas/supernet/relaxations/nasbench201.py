"""`nasbench201` relaxed: the six edges of the cell, each decided once for all cells, whose outputs nodes sum.

Derived networks lack edges that cannot matter (`NasBench201Space.canonical`); the relaxed network computes the
constants that their batch normalisations learned, a derived one does not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.blocks import Block
from hwnas.space import IntMatrix, Option, SearchSpace, rows_of
from hwnas.spaces.nasbench201 import EDGES, OPS
from hwnas.supernet.relaxations import fixed_options
from hwnas.supernet.relaxed import Choice, Edge, Zero


class NasBench201Relaxation:
    """Choices of an edge are the options of its slot."""

    def __init__(self, space: SearchSpace, fixed: Mapping[str, Option]) -> None:
        fixed_options(space, (), fixed)
        self.space = space
        self.edges = tuple(Edge(slot.name, OPS) for slot in space.slots)

    def archs(self, choices: IntMatrix) -> IntMatrix:
        return self.space.canonical(np.asarray(choices, dtype=np.int64))

    def usable(self, archs: IntMatrix) -> NDArray[np.bool_]:
        return np.asarray(archs.any(axis=1))  # a cell without any path is all `none`

    def body(self) -> nn.Module:
        # An architecture with the same operation on all edges has every block there is of it, cell by cell.
        by_op = [
            {position.name: block for position, block in self.space.placed_blocks((op,) * len(EDGES))}
            for op in range(len(OPS))
        ]
        layers = OrderedDict[str, nn.Module]()
        for position in self.space.positions:
            layer, _, place = position.name.partition(".")
            if not place:
                layers[layer] = by_op[0][layer].module()
            elif layer not in layers:
                layers[layer] = RelaxedCell(
                    [
                        [_candidate(op, by_op[op], f"{layer}.{edge.name}") for op in range(len(OPS))]
                        for edge in self.edges
                    ]
                )
        return nn.Sequential(layers)

    def sources(self, choices: Sequence[int]) -> Mapping[str, str]:
        (arch,) = rows_of(self.archs(np.array([list(choices)])))
        names = {edge.name: option for edge, option in zip(self.edges, arch, strict=True)}
        found = {}
        for position, _ in self.space.placed_blocks(arch):
            place = position.name.partition(".")[2]
            if place in names:
                found[position.name] = f"{position.name}.candidates.{names[place]}"
            elif not place:
                found[position.name] = position.name  # nodes have no weights
        return found


class RelaxedCell(nn.Module):
    """A cell with all candidates on its edges: (batch, channels, size, size) -> the same shape."""

    def __init__(self, candidates: Sequence[Sequence[nn.Module]]) -> None:
        super().__init__()
        for number, ((source, target), edge) in enumerate(zip(EDGES, candidates, strict=True)):
            self.add_module(f"edge{source}{target}", Choice(number, edge))

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for node in (1, 2, 3):
            brought = [
                self.get_submodule(f"edge{source}{target}")(nodes[source]) for source, target in EDGES if target == node
            ]
            nodes.append(sum(brought[1:], brought[0]))
        return nodes[3]


def _candidate(op: int, blocks: Mapping[str, Block], place: str) -> nn.Module:
    if place in blocks:
        return blocks[place].module()
    return Zero() if OPS[op] == "none" else nn.Identity()


def relax_nasbench201(space: SearchSpace, fixed: Mapping[str, Option]) -> NasBench201Relaxation:
    """The relaxation; there is nothing to fix."""
    return NasBench201Relaxation(space, fixed)
