"""Model files written straight from modules, in milliseconds: one file per format, named by its runtime's `format`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import MissingPackageError, SpaceError

if TYPE_CHECKING:
    from hwnas.blocks import Block
    from hwnas.graphs.plain import Graph
    from hwnas.space import Arch, SearchSpace
    from hwnas.trace import Trace
    from hwprof.target import Target

# format -> (module with `write(graph, path, precision)`, suffix of its files)
FORMATS = {
    "onnx": ("hwnas.graphs.onnx", ".onnx"),
    "onnx-symmetric": ("hwnas.graphs.onnx_symmetric", ".onnx"),
    "ncnn": ("hwnas.graphs.ncnn", ".ncnn.param"),
    "tflite": ("hwnas.graphs.tflite", ".tflite"),
    "torch": ("hwnas.graphs.torchgraph", ".torch.zip"),
}


def suffix_of(target: Target) -> str:
    """The suffix of the model files that the target's runtime runs. Raises TargetError on an unknown runtime."""
    return _format(target)[1]


def write_graph(graph: Graph, target: Target, path: Path) -> None:
    """Write a graph as a file that the target's runtime runs, in the target's precision.

    Raises TargetError on a runtime or a precision that is not there, SpaceError for an operator that its format lacks,
    MissingPackageError where the format is written by a package that is not installed.
    """
    from hwprof.runtimes import kind_of

    try:
        write: Callable[[Graph, Path, str], None] = importlib.import_module(_format(target)[0]).write
    except ImportError as error:
        raise MissingPackageError(
            f"files for {target.runtime} are written with a package that is not installed here ({error}); "
            f"pip install {kind_of(target.runtime).packages}"
        ) from error
    write(graph, path, target.precision)


def write_arch(space: SearchSpace, arch: Arch, target: Target, stem: Path) -> Path:
    """Write an architecture with random weights, its nodes tagged by position, for profiling on the target.

    The path written is the stem with the suffix of the target's format.
    """
    import torch

    from hwnas.graphs.plain import plain_graph

    with torch.device("meta"):
        module = space.build(arch)
    graph = plain_graph(module, [space.input_shape(arch)], positions=space.positions, batch=target.batch)
    path = stem.with_name(stem.name + suffix_of(target))
    write_graph(graph, target, path)
    return path


def write_block(block: Block, target: Target, stem: Path) -> Path:
    """Write one block alone, with random weights; the path written, as of `write_arch`."""
    return write_trace(block.trace, target, stem)


def write_trace(traced: Trace, target: Target, stem: Path) -> Path:
    """Write the operators of a trace, as `write_block` writes those of a block."""
    from hwnas.graphs.plain import traced_graph

    path = stem.with_name(stem.name + suffix_of(target))
    write_graph(traced_graph(traced, batch=target.batch), target, path)
    return path


def _format(target: Target) -> tuple[str, str]:
    from hwprof.runtimes import require_runnable

    name = require_runnable(target).format
    if name not in FORMATS:
        raise SpaceError(f"no writer of {name} files is known; it belongs into hwnas/graphs/{name}.py")
    return FORMATS[name]
