"""ONNX: any batch, float32 inputs and outputs in every precision, int8 as QuantizeLinear / DequantizeLinear pairs.

The graph is our own (`hwnas/graphs/onnx.py`): the operators that were profiled, in an opset that old runtimes read.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hwnas.export.exporter import ExportSpec, Infer, load_in, require_precision
from hwnas.export.onnx import read_metadata


class OnnxExporter:
    """Writes .onnx; checked in ONNX Runtime."""

    name = "onnx"
    suffixes = (".onnx",)
    precisions = ("fp32", "fp16", "int8")
    largest_batch = None
    layout = "nchw"

    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        from hwnas.export.graph import onnx_of

        require_precision(self, spec.precision)
        path.write_bytes(onnx_of(module, spec).SerializeToString())

    def load(self, path: Path, precision: str) -> Infer:
        return load_in("onnxruntime", path, precision)

    def read_metadata(self, path: Path) -> dict[str, str]:
        return read_metadata(path)
