"""OpenVINO IR: a graph in .xml, its weights in .bin, converted from our ONNX by OpenVINO itself; any batch.

fp16 weights are halves, which OpenVINO computes with in what its processor is best at, unless told otherwise. int8 is
that of the ONNX file's pairs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from hwnas.errors import ExportError
from hwnas.export.exporter import Array, ExportSpec, Infer, needs, require_precision

_PACKAGES = "openvino"


class OpenVinoExporter:
    """Writes .xml and .bin; checked by OpenVINO on the CPU."""

    name = "openvino"
    suffixes = (".xml", ".bin")
    precisions = ("fp32", "fp16", "int8")
    largest_batch = None
    layout = "nchw"

    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        from hwnas.export.graph import onnx_of

        require_precision(self, spec.precision)
        with needs("an OpenVINO file", _PACKAGES):
            import openvino as ov
        halves = spec.precision == "fp16"
        model = onnx_of(module, replace(spec, precision="fp32") if halves else spec)
        try:
            converted = ov.Core().read_model(model.SerializeToString())
            for key, value in spec.metadata.items():
                converted.set_rt_info(value, [key])
            ov.save_model(converted, path, compress_to_fp16=halves)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot write {path.name}: {error}") from error

    def load(self, path: Path, precision: str) -> Infer:
        with needs(f"{path.name}, to be run,", _PACKAGES):
            import openvino as ov
        # Whatever the weights are kept as: arithmetic in halves is not for every processor.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        try:
            compiled = ov.Core().compile_model(path, "CPU", settings)
        except RuntimeError as error:
            raise ExportError(f"{path.name} cannot be loaded: {error}") from error

        def infer(images: Array) -> Array:
            try:
                return np.array(compiled(images)[0])
            except RuntimeError as error:
                raise ExportError(f"{path.name} cannot be run: {error}") from error

        return infer

    def read_metadata(self, path: Path) -> dict[str, str]:
        import openvino as ov

        facts = ov.Core().read_model(path).get_rt_info()
        return {key: facts[key].astype(str) for key in facts if key.startswith("hwnas.")}
