"""ONNX for TensorRT: as `onnx.py`, but int8 is the symmetric form, what is not quantised in fp16."""

from __future__ import annotations

from pathlib import Path

import onnx

from hwnas.graphs.onnx import onnx_model
from hwnas.graphs.onnx_int8 import int8_model
from hwnas.graphs.plain import Graph


def write(graph: Graph, path: Path, precision: str) -> None:
    """Write the graph to a file. Raises SpaceError for a precision or an operator without a form in ONNX."""
    model = int8_model(graph, symmetric=True, rest="fp16") if precision == "int8" else onnx_model(graph, precision)
    onnx.save(model, path)
