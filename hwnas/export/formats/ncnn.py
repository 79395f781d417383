"""ncnn: a graph in .param, its weights in .bin, written by us (`hwnas/graphs/ncnn.py`); one image at a time.

The text has no place for metadata: the card beside the files has it. int8 layers have the scales that ncnn's own tools
would give them.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hwnas.export.exporter import ExportSpec, Infer, load_in, require_precision


class NcnnExporter:
    """Writes .ncnn.param and .ncnn.bin; checked in ncnn."""

    name = "ncnn"
    suffixes = (".ncnn.param", ".ncnn.bin")
    precisions = ("fp32", "fp16", "int8")
    largest_batch = 1
    layout = "nchw"

    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        from hwnas.export.graph import graph_of
        from hwnas.graphs.ncnn import write

        require_precision(self, spec.precision)
        graph = graph_of(module, spec.input_shape, spec.precision, 1, spec.calibration, spec.in_float)
        write(graph, path, spec.precision)

    def load(self, path: Path, precision: str) -> Infer:
        return load_in("ncnn", path, precision)

    def read_metadata(self, path: Path) -> dict[str, str]:
        return {}
