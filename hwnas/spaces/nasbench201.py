"""`nasbench201`: the cell space of NAS-Bench-201 (Dong & Yang, ICLR 2020, arXiv 2001.00326), in the authors' network.

A cell has four nodes; each of its six edges carries an operation, and a node is the sum of what its edges bring. The
same cell is stacked in three stages with residual reduction blocks between them. Networks are built as they would be
deployed: an edge without an operation computes nothing, and edges that cannot matter are taken away (`canonical`). The
authors trained and counted those too, so the 6,180 cells that have such edges show more parameters in the public table
than are built here where the edge holds a convolution; all others agree. The table's FLOPs are multiply-accumulates
plus batch normalisations, activations and pooling. The blocks: `nasbench201_blocks.py`; the authors' numbers and
strings: `nasbench201_names.py`.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.blocks import Block, ConvBlock
from hwnas.errors import SpaceError
from hwnas.space import Arch, IntMatrix, Position, SearchSpace, Slot
from hwnas.spaces.nasbench201_blocks import (
    AvgPoolBlock,
    NormHeadBlock,
    ReductionBlock,
    ReLUConvBlock,
    SumBlock,
    ZeroBlock,
)

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
_STAGES = 3
_NONE, _SKIP, _CONV1, _CONV3, _POOL = range(len(OPS))
_Value = TypeVar("_Value")
# the edges of every way from node 0 to node 3, and the sequences of operations as numbers of base 5, no `none` in them
_PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))
_SEQUENCES = np.array(
    sorted(
        sum(op * len(OPS) ** place for place, op in enumerate(reversed(ops)))
        for length in range(4)
        for ops in itertools.product((_CONV1, _CONV3, _POOL), repeat=length)
    )
)


class NasBench201Space(SearchSpace):
    """The space; every argument has NAS-Bench-201's value for CIFAR-10 as default.

    `channels` are those of the first stage (doubled at each reduction), `cells` the cells per stage. Raises SpaceError
    on arguments that are no positive integers, or a resolution that cannot be halved twice.
    """

    name = "nasbench201"
    slots = tuple(Slot(f"edge{source}{target}", OPS) for source, target in EDGES)

    def __init__(
        self, *, num_classes: int = 10, channels: int = 16, cells: int = 5, resolution: int = 32, in_channels: int = 3
    ) -> None:
        self._config = {
            "num_classes": num_classes,
            "channels": channels,
            "cells": cells,
            "resolution": resolution,
            "in_channels": in_channels,
        }
        for name, value in self._config.items():
            if not isinstance(value, int) or value < 1:
                raise SpaceError(f"{name} must be a positive integer, got {value!r}")
        if resolution % 4:
            raise SpaceError(f"resolution must be a multiple of 4 (two reductions halve it), got {resolution}")
        self.num_classes = num_classes
        stem = ConvBlock(resolution, in_channels, channels, 3, 1, "")
        makers: dict[Position, Callable[[Sequence[int]], Block | None]] = {Position("stem", ()): partial(_always, stem)}
        size, width = resolution, channels
        for stage in range(_STAGES):
            if stage:
                reduction = ReductionBlock(size, width, 2 * width)
                makers[Position(f"reduce{stage}", ())] = partial(_always, reduction)
                size, width = size // 2, 2 * width
            for cell in range(cells):
                for place, slots, maker in _CELL:
                    makers[Position(f"stage{stage}_cell{cell}.{place}", slots)] = partial(maker, size, width)
        makers[Position("head", ())] = partial(_always, NormHeadBlock(size, width, num_classes))
        self.positions = tuple(makers)
        self._makers = tuple(makers.values())

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def block_at(self, position: int, options: Sequence[int]) -> Block | None:
        return self._makers[position](options)

    def input_shape(self, arch: Arch) -> tuple[int, int, int]:
        size = self._config["resolution"]
        return self._config["in_channels"], size, size

    def canonical(self, archs: IntMatrix) -> IntMatrix:
        """(n, 6) -> (n, 6): edges that the input does not reach, or that do not reach the output, set to `none`.

        A cell without any path becomes six times `none`, a network of constant output. Not exactly the same after
        training: to the authors' network, a convolution that the input does not reach still adds a constant, the
        learned bias of its batch normalisation. Nothing else is merged: cells that compute the same in another way (a
        `skip_connect` before an operation, say) stay different rows.
        """
        archs = archs.copy()
        edge01, edge02, edge12, _, edge13, edge23 = archs.T  # views
        for leaving in (edge12, edge13):
            leaving[edge01 == _NONE] = _NONE
        edge23[(edge02 == _NONE) & (edge12 == _NONE)] = _NONE
        for entering in (edge02, edge12):
            entering[edge23 == _NONE] = _NONE
        edge01[(edge12 == _NONE) & (edge13 == _NONE)] = _NONE
        return archs

    def features(self, archs: IntMatrix) -> NDArray[np.float64]:
        """(n, 6) canonical -> (n, 40) how often each sequence of operations leads from the input to the output.

        Path encoding (White et al., AAAI 2021, arXiv 1910.11858) without `skip_connect`, which computes nothing: cells
        that are the same but for the numbering of their nodes have the same counts.
        """
        counts = np.zeros((len(archs), len(_SEQUENCES)))
        rows = np.arange(len(archs))
        for path in _PATHS:
            code = np.zeros(len(archs), dtype=np.int64)
            for ops in archs[:, list(path)].T:
                code = np.where(ops == _SKIP, code, code * len(OPS) + ops)
            open_ = (archs[:, list(path)] != _NONE).all(axis=1)
            counts[rows[open_], np.searchsorted(_SEQUENCES, code[open_])] += 1
        return counts

    def build(self, arch: Arch) -> nn.Module:
        """The network as a sequence of stem, cells, reductions and head."""
        arch = self.check(arch)
        layers = OrderedDict[str, nn.Module]()
        for position, block in self.placed_blocks(arch):
            layer, _, place = position.name.partition(".")
            if place:
                # a cell that computes nothing (skip connections in a row) is not here at all
                layers.setdefault(layer, Cell(arch)).add_module(place, block.module())
            else:
                layers[layer] = block.module()
        return nn.Sequential(layers)

    def sources(self, arch: Arch) -> list[tuple[int, ...]]:
        """What each block reads: cells branch, and a `skip_connect` hands on what it got."""
        arch = self.check(arch)
        numbers = {position.name: number for number, (position, _) in enumerate(self.placed_blocks(arch))}
        read: dict[str, tuple[int, ...]] = {}

        def compute(layer: str, place: str, inputs: Sequence[int]) -> int:
            name = f"{layer}.{place}" if place else layer
            read[name] = tuple(inputs)
            return numbers[name]

        last = -1
        for layer in dict.fromkeys(position.name.partition(".")[0] for position in self.positions):
            last = compute(layer, "", [last]) if layer in numbers else _run_cell(arch, last, partial(compute, layer))
        return [read[name] for name in numbers]


class Cell(nn.Module):
    """A cell of a canonical architecture: (batch, channels, size, size) -> the same shape."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch

    def forward(self, x: Tensor) -> Tensor:
        return _run_cell(self.arch, x, lambda place, inputs: self.get_submodule(place)(*inputs))


def _run_cell(arch: Arch, x: _Value, compute: Callable[[str, Sequence[_Value]], _Value]) -> _Value:
    """The cell's output for its input `x`; `compute` gives what the block at a place makes of its inputs."""
    nodes = {0: x}
    for node in (1, 2, 3):
        inputs = [
            nodes[source] if op == _SKIP else compute(f"edge{source}{target}", [nodes[source]])
            for (source, target), op in zip(EDGES, arch, strict=True)
            if target == node and op != _NONE
        ]
        if inputs:
            nodes[node] = compute(f"node{node}", inputs) if len(inputs) > 1 else inputs[0]
    return nodes[3] if 3 in nodes else compute("node3", [x])  # a cell without any edge


def _always(block: Block, options: Sequence[int]) -> Block:
    return block


def _edge(size: int, channels: int, options: Sequence[int]) -> Block | None:
    (op,) = options
    if op == _POOL:
        return AvgPoolBlock(size, channels)
    return {_CONV1: ReLUConvBlock(size, channels, 1), _CONV3: ReLUConvBlock(size, channels, 3)}.get(op)


def _node(size: int, channels: int, options: Sequence[int]) -> Block | None:
    inputs = sum(op != _NONE for op in options)
    return SumBlock(size, channels, inputs) if inputs > 1 else None


def _last_node(size: int, channels: int, options: Sequence[int]) -> Block | None:
    return _node(size, channels, options) if any(options) else ZeroBlock(size, channels)


# the positions of a cell, in the order of their computation: name, slots, block
_CELL: tuple[tuple[str, tuple[int, ...], Callable[[int, int, Sequence[int]], Block | None]], ...] = (
    ("edge01", (0,), _edge),
    ("edge02", (1,), _edge),
    ("edge12", (2,), _edge),
    ("node2", (1, 2), _node),
    ("edge03", (3,), _edge),
    ("edge13", (4,), _edge),
    ("edge23", (5,), _edge),
    ("node3", (3, 4, 5), _last_node),
)
