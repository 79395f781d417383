"""Model files written straight from modules, in milliseconds: one file per format, named by its runtime's `format`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import SpaceError

if TYPE_CHECKING:
    from hwnas.blocks import Block
    from hwnas.graphs.plain import Graph
    from hwnas.space import Arch, SearchSpace
    from hwprof.target import Target

# format -> (module with `write(graph, path, precision)`, suffix of its files)
FORMATS = {
    "onnx": ("hwnas.graphs.onnx", ".onnx"),
    "torch": ("hwnas.graphs.torchgraph", ".torch.zip"),
}


def write_graph(graph: Graph, target: Target, stem: Path) -> Path:
    """Write a graph as a file that the target's runtime runs, in the target's precision; the path: stem and suffix.

    Raises TargetError on a runtime or a precision that is not there, SpaceError for an operator that its format lacks.
    """
    module, suffix = _format(target)
    path = stem.with_name(stem.name + suffix)
    write: Callable[[Graph, Path, str], None] = importlib.import_module(module).write
    write(graph, path, target.precision)
    return path


def write_arch(space: SearchSpace, arch: Arch, target: Target, stem: Path) -> Path:
    """Write an architecture with random weights, its nodes tagged by position, for profiling on the target."""
    import torch

    from hwnas.graphs.plain import plain_graph

    with torch.device("meta"):
        module = space.build(arch)
    graph = plain_graph(module, [space.input_shape(arch)], positions=space.positions, batch=target.batch)
    return write_graph(graph, target, stem)


def write_block(block: Block, target: Target, stem: Path) -> Path:
    """Write one block alone, with random weights."""
    from hwnas.graphs.plain import traced_graph

    return write_graph(traced_graph(block.trace, batch=target.batch), target, stem)


def _format(target: Target) -> tuple[str, str]:
    from hwprof.runtimes import require_runnable

    name = require_runnable(target).format
    if name not in FORMATS:
        raise SpaceError(f"no writer of {name} files is known; it belongs into hwnas/graphs/{name}.py")
    return FORMATS[name]
