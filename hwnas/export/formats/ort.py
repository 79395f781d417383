"""ONNX Runtime's own format for small builds and phones: the ONNX graph, optimised ahead as far as every CPU allows.

Made by ONNX Runtime of the version that is installed: runtimes of later versions read it, older ones may not.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hwnas.errors import ExportError
from hwnas.export.exporter import ExportSpec, Infer, load_in, needs, require_precision


class OrtExporter:
    """Writes .ort; checked in ONNX Runtime."""

    name = "ort"
    suffixes = (".ort",)
    precisions = ("fp32", "fp16", "int8")
    largest_batch = None
    layout = "nchw"

    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        from hwnas.export.graph import onnx_of

        require_precision(self, spec.precision)
        with needs("a .ort file", "onnxruntime"):
            import onnxruntime as ort
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # What the level "all" adds holds for the processor of this machine only.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.save_model_format", "ORT")
        try:
            ort.InferenceSession(onnx_of(module, spec).SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises its own unexported types
            raise ExportError(f"ONNX Runtime cannot write {path.name}: {error}") from error

    def load(self, path: Path, precision: str) -> Infer:
        return load_in("onnxruntime", path, precision)

    def read_metadata(self, path: Path) -> dict[str, str]:
        import onnxruntime as ort

        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return dict(session.get_modelmeta().custom_metadata_map)
