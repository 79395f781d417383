"""What a runtime fuses and shares across blocks: the part of a network's latency that is not additive over its blocks.

Every runtime that optimises graphs fuses an elementwise operator into the convolution whose only reader it is, and
computes equal operators on the same tensor once (common subexpressions). Inside a block both always happen alike and
are part of its row. Between blocks they depend on the neighbours: a cell with three convolutions on one node has one
ReLU left of three. So the number of such operators, and the elements they would have moved, are features of the whole
network; what each is worth on a target is learnt from measured networks (`calibrate.py`), nothing where a runtime does
neither. nn-Meter (MobiSys 2021) detects such rules with test graphs; here they are counted and regressed.

In chains of blocks that begin with a convolution and end with one (MobileNets), no count depends on a neighbour: then
there are no features, and latency is additive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hwnas.blocks import Block
from hwnas.space import Arch, IntMatrix, SearchSpace, rows_of

FloatMatrix = NDArray[np.float64]

_ELEMENTWISE = frozenset({"relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "add", "mul"})
_COMMUTATIVE = frozenset({"add", "mul"})
# Networks whose counts are kept: about a kilobyte each.
_REMEMBERED = 300_000


@dataclass(frozen=True)
class _Node:
    """An operator of a block: `inputs` are numbers of nodes before it, or ~i for the block's input i."""

    kind: str
    inputs: tuple[int, ...]
    moved: float
    same_if: str | None  # equal for nodes that compute the same of the same inputs; None with weights of its own


@dataclass(frozen=True)
class _BlockGraph:
    nodes: tuple[_Node, ...]
    output: int


@lru_cache(maxsize=65536)
def _graph(block: Block) -> _BlockGraph:
    numbers = {name: ~index for index, name in enumerate(block.trace.inputs)}
    nodes: list[_Node] = []
    for op in block.trace.ops:
        inputs = tuple(numbers[name] for name in op.inputs)
        if op.kind == "batch_norm" and inputs[0] >= 0 and nodes[inputs[0]].kind == "conv":
            numbers[op.output] = inputs[0]  # folded into the convolution
            continue
        weights = op.module is not None and any(True for _ in op.module.state_dict())
        moved = sum(float(np.prod(shape)) for shape in (*op.input_shapes, op.output_shape)) * 1e-6
        numbers[op.output] = len(nodes)
        nodes.append(_Node(op.kind, inputs, moved, None if weights else f"{op.kind} {op.module}"))
    return _BlockGraph(tuple(nodes), numbers[block.trace.output])


def fusions(space: SearchSpace, arch: Arch) -> list[Counter[str]]:
    """What is fused and shared at each block of `space.placed_blocks(arch)`.

    "relu fused" is the number of such operators, "relu fused moved" the elements they would read and write, in
    millions; "relu shared" likewise for those that another operator of the network computes already.
    """
    blocks = [block for _, block in space.placed_blocks(arch)]
    found: list[Counter[str]] = [Counter() for _ in blocks]
    kept: list[tuple[int, _Node, tuple[int, ...]]] = []  # block, operator, operators that it reads
    known: dict[tuple[str, tuple[int, ...]], int] = {}
    outputs: list[int] = []
    for owner, (block, sources) in enumerate(zip(blocks, space.sources(arch), strict=True)):
        entering = [outputs[source] if source >= 0 else -1 for source in sources]
        here: list[int] = []
        for node in _graph(block).nodes:
            inputs = tuple(here[number] if number >= 0 else entering[~number] for number in node.inputs)
            if node.kind in _COMMUTATIVE:
                inputs = tuple(sorted(inputs))
            if node.same_if is not None and known.setdefault((node.same_if, inputs), len(kept)) < len(kept):
                here.append(known[node.same_if, inputs])
                _count(found[owner], node, "shared")
            else:
                here.append(len(kept))
                kept.append((owner, node, inputs))
        output = _graph(block).output
        outputs.append(here[output] if output >= 0 else entering[~output])
    readers = Counter(number for _, _, inputs in kept for number in inputs)
    absorbing: list[bool] = []  # a convolution, or what is fused into one
    for owner, node, inputs in kept:
        fused = node.kind in _ELEMENTWISE and any(
            number >= 0 and absorbing[number] and readers[number] == 1 for number in inputs
        )
        absorbing.append(fused or node.kind == "conv")
        if fused:
            _count(found[owner], node, "fused")
    return found


def _count(counter: Counter[str], node: _Node, how: str) -> None:
    counter[f"{node.kind} {how}"] += 1
    counter[f"{node.kind} {how} moved"] += node.moved  # type: ignore[assignment]


def contextual(space: SearchSpace, archs: IntMatrix) -> tuple[str, ...]:
    """Names of the counts of `fusions` that depend on a block's neighbours, seen in the given (n, slots) networks."""
    seen: dict[Block, Counter[str]] = {}
    names: set[str] = set()
    for row in rows_of(archs):
        for (_, block), counts in zip(space.placed_blocks(row), fusions(space, row), strict=True):
            first = seen.setdefault(block, counts)
            names |= {name for name in {*first, *counts} if first[name] != counts[name]}
    return tuple(sorted(names))


class FusionCounts:
    """The named counts of whole networks as a matrix: (n, slots) int -> (n, names); remembers networks."""

    def __init__(self, space: SearchSpace, names: Sequence[str]) -> None:
        self.space, self.names = space, tuple(names)
        self._known: dict[bytes, NDArray[np.float64]] = {}

    def __call__(self, archs: IntMatrix) -> FloatMatrix:
        if not self.names:
            return np.zeros((len(archs), 0))
        distinct, places = np.unique(np.asarray(archs, dtype=np.int64), axis=0, return_inverse=True)
        if len(self._known) + len(distinct) > _REMEMBERED:
            self._known.clear()
        return np.array([self._row(row) for row in distinct]).reshape(-1, len(self.names))[places.reshape(-1)]

    def _row(self, row: NDArray[np.int64]) -> NDArray[np.float64]:
        key = row.tobytes()
        if key not in self._known:
            total: Counter[str] = Counter()
            for counts in fusions(self.space, tuple(int(option) for option in row)):
                total.update(counts)
            self._known[key] = np.array([total[name] for name in self.names], dtype=np.float64)
        return self._known[key]
