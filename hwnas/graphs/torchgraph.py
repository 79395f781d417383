"""A plain graph as a file for PyTorch itself (see hwprof.runtimes.torch_file): its operators, shapes and weights.

Weights stay float32 in the file: the runtime casts them to the precision of the target, as `module.half()` would.
"""

from __future__ import annotations

from pathlib import Path

from hwnas.errors import SpaceError
from hwnas.graphs.plain import Graph, Node
from hwprof.runtimes.torch_file import KINDS, GraphFile, Step, write_graph_file

PRECISIONS = ("fp32", "fp16", "bf16")


def write(graph: Graph, path: Path, precision: str) -> None:
    """Write the graph to a file. Raises SpaceError for a precision or an operator without a form in it."""
    if precision not in PRECISIONS:
        raise SpaceError(f"graphs for torch have no precision {precision!r}; they have {', '.join(PRECISIONS)}")
    steps = tuple(_step(node) for node in graph.nodes)
    write_graph_file(GraphFile(graph.inputs, graph.output, graph.shapes, steps), path)


def _step(node: Node) -> Step:
    form = KINDS.get(node.kind)
    if form is None:
        raise SpaceError(
            f"{node.name}: no torch form of {node.kind} is known; add it to KINDS in hwprof/runtimes/torch_file.py "
            "and to hwprof/runtimes/torch_eager.py"
        )
    # The zeros that stand for a bias which never was would be one kernel more on a GPU.
    weights = {
        name: array for name, array in node.weights.items() if name != "bias" or node.attributes.get("has_bias", True)
    }
    attributes = {name: node.attributes[name] for name in form.attributes}
    return Step(node.kind, node.name, node.inputs, weights, attributes)
