"""Which blocks of a network stay in float in an int8 file, so that it loses no more accuracy than it may.

Blocks are ranked by what eight bits in that block alone do to the logits, a mean squared difference: it tells blocks
apart where accuracy, on a few thousand images, does not. Then one after another, most sensitive first, they are kept in
float, until the accuracy measured on labelled images is within the budget. So a block is in float since the measured
accuracy asked for it; the ranking only says in which order they are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import with_config
from torch import Tensor, nn

from hwnas.errors import ExportError
from hwnas.export.exporter import Infer
from hwnas.export.simulate import simulated
from hwnas.export.verify import Images, batches_of
from hwnas.graphs.plain import Graph, block_index, plain_graph
from hwnas.saved import EXACT
from hwnas.space import Position
from hwprof.target import Target

# Images that blocks are ranked on.
RANKED = 256


@with_config(EXACT)
@dataclass(frozen=True)
class Choice:
    """The blocks to keep in float, and accuracies in percent on the same images: with them in float, and of the module.

    `within_drop`: whether the loss is within the budget. Where it cannot be, all is in int8.
    """

    in_float: tuple[str, ...]
    accuracy: float
    float_accuracy: float
    within_drop: bool


def blocks_of(
    module: nn.Module, input_shape: tuple[int, int, int], positions: Sequence[Position]
) -> dict[str, frozenset[str]]:
    """Name of each position -> the nodes of its block, by their names in a graph without positions."""
    found: dict[str, frozenset[str]] = {}
    for node in plain_graph(module, [input_shape], positions=positions).nodes:
        number = block_index(node.name)
        if number is None:
            raise ExportError(f"{node.name} belongs to no block: give the positions of the network's space")
        name = positions[number].name
        found[name] = found.get(name, frozenset()) | {node.name.partition(":")[2]}
    return found


def nodes_in_float(blocks: Mapping[str, frozenset[str]], in_float: Sequence[str]) -> frozenset[str]:
    """The nodes of some blocks, as `Graph.in_float` takes them."""
    return frozenset[str]().union(*(blocks[name] for name in in_float))


def choose_in_float(
    module: nn.Module,
    graph: Graph,
    target: Target,
    blocks: Mapping[str, frozenset[str]],
    images: Images,
    labels: Tensor,
    *,
    max_drop: float,
    worth: Callable[[Sequence[str]], bool] = lambda in_float: True,
) -> Choice:
    """The blocks that stay in float so that int8 loses at most `max_drop` points of accuracy.

    `graph` is the module's, with measured ranges; `images` gives a slice of those of the `labels`, as the module takes
    them. A set of blocks in float of which `worth` says no, since the device would not gain, is passed over, and so is
    all of them. The accuracy is that of a simulation (`simulate.py`) of the target's int8. Raises ExportError without
    images.
    """
    if not len(labels):
        raise ExportError("sensitive blocks are found on labelled images, and there are none")
    module.eval()

    def infer(in_float: Sequence[str]) -> Infer:
        return simulated(module, replace(graph, in_float=nodes_in_float(blocks, in_float)), target)

    float_accuracy = accuracy_of(simulated(module, graph, replace(target, precision="fp32")), images, labels)
    plain = accuracy_of(infer(()), images, labels)
    if float_accuracy - plain <= max_drop:
        return Choice((), plain, float_accuracy, True)
    few = images(slice(0, min(RANKED, len(labels)))).numpy()
    expected = simulated(module, graph, replace(target, precision="fp32"))(few)
    errors = {
        name: float(np.mean((infer([other for other in blocks if other != name])(few) - expected) ** 2))
        for name in blocks
    }
    ranked = sorted(blocks, key=lambda name: -errors[name])
    for count in range(1, len(ranked)):
        in_float = ranked[:count]
        if not worth(in_float):
            continue
        accuracy = accuracy_of(infer(in_float), images, labels)
        if float_accuracy - accuracy <= max_drop:
            return Choice(tuple(in_float), accuracy, float_accuracy, True)
    return Choice((), plain, float_accuracy, False)


def accuracy_of(infer: Infer, images: Images, labels: Tensor) -> float:
    """Accuracy in percent. Raises ExportError for logits that are not finite."""
    right = 0
    for batch, wanted in batches_of(images, labels):
        logits = infer(batch.numpy())
        if not np.isfinite(logits).all():
            raise ExportError("the network gives logits that are not finite in this precision")
        right += int((logits.argmax(axis=1) == wanted.numpy()).sum())
    return 100.0 * right / len(labels)
