"""LiteRT (TensorFlow Lite): one .tflite file, channels last, written by us (`hwnas/graphs/tflite.py`).

The batch is the spec's, and any other after `resize_tensor_input`. Metadata is where LiteRT's own tools put files of a
model: in a ZIP archive at the end of the file, `hwnas.json` and `labels.txt`.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn

from hwnas.errors import ExportError
from hwnas.export.exporter import Array, ExportSpec, Infer, needs, require_precision

_PACKAGES = "ai-edge-litert"
_METADATA_BYTES = 4 << 20


class TfliteExporter:
    """Writes .tflite; checked in LiteRT."""

    name = "tflite"
    suffixes = (".tflite",)
    precisions = ("fp32", "fp16", "int8")
    largest_batch = None
    layout = "nhwc"

    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        from hwnas.export.graph import graph_of

        require_precision(self, spec.precision)
        with needs("a .tflite file", _PACKAGES):
            from hwnas.graphs.tflite import tflite_model
        graph = graph_of(module, spec.input_shape, spec.precision, spec.batch, spec.calibration, spec.in_float)
        path.write_bytes(_resizable(tflite_model(graph, spec.precision)))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("hwnas.json", json.dumps(dict(spec.metadata)))
            if "hwnas.classes" in spec.metadata:
                archive.writestr("labels.txt", "\n".join(json.loads(spec.metadata["hwnas.classes"])))

    def load(self, path: Path, precision: str) -> Infer:
        with needs(f"{path.name}, to be run,", _PACKAGES):
            from ai_edge_litert.interpreter import Interpreter
        try:
            interpreter: Any = Interpreter(model_path=str(path), num_threads=1)
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"{path.name} cannot be loaded: {error}") from error

        def infer(images: Array) -> Array:
            turned = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
            try:
                (source,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
                if tuple(source["shape"]) != turned.shape:
                    interpreter.resize_tensor_input(source["index"], turned.shape)
                interpreter.allocate_tensors()
                interpreter.set_tensor(source["index"], turned)
                interpreter.invoke()
                return cast(Array, interpreter.get_tensor(output["index"]))
            except (ValueError, RuntimeError) as error:
                raise ExportError(f"{path.name} cannot be run: {error}") from error

        return infer

    def read_metadata(self, path: Path) -> dict[str, str]:
        try:
            with zipfile.ZipFile(path) as archive:
                if (size := archive.getinfo("hwnas.json").file_size) > _METADATA_BYTES:
                    raise ValueError(f"its metadata has {size} bytes")
                return dict(json.loads(archive.read("hwnas.json")))
        except (zipfile.BadZipFile, KeyError, ValueError, RecursionError, OSError) as error:
            raise ExportError(f"{path} holds no metadata of ours: {error}") from error


def _resizable(data: bytes) -> bytes:
    """The same model with reshapes that keep whatever batch there is, instead of the one that it was written for."""
    from ai_edge_litert import schema_py_generated as schema

    changed = bytearray(data)
    model = schema.Model.GetRootAs(changed)
    graph = model.Subgraphs(0)
    for operator in map(graph.Operators, range(graph.OperatorsLength())):
        if model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode() == schema.BuiltinOperator.RESHAPE:
            shape = model.Buffers(graph.Tensors(operator.Inputs(1)).Buffer()).DataAsNumpy().view("<i4")
            options = schema.ReshapeOptions()
            options.Init(operator.BuiltinOptions().Bytes, operator.BuiltinOptions().Pos)
            shape[0] = options.NewShapeAsNumpy()[0] = -1  # both are views of the file
    return bytes(changed)
