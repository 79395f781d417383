"""TensorRT: an engine for the GPU of this machine, for 1 to 32 images at once.

Beside it are the ONNX file that it was built from, with the metadata that an engine has no place for; the timing cache,
with which the next build for such a GPU is fast; and what TensorRT's inspector says of the engine's layers, as JSON.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from hwnas.errors import ExportError
from hwnas.export.exporter import ExportSpec, Infer, load_in, needs, require_precision
from hwnas.export.onnx import read_metadata
from hwprof.errors import MeasurementError, TargetError
from hwprof.target import Target


class TensorRtExporter:
    """Writes .engine, .onnx, .timing and .layers.json; checked in TensorRT."""

    name = "tensorrt"
    suffixes = (".engine", ".onnx", ".timing", ".layers.json")
    precisions = ("fp32", "fp16", "bf16", "int8")
    largest_batch = 32
    layout = "nchw"

    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        from hwnas.export.graph import onnx_of
        from hwprof.cuda import Gpu
        from hwprof.runtimes.tensorrt_cache import timing_cache_path

        require_precision(self, spec.precision)
        with needs("a TensorRT engine", "tensorrt"):
            import tensorrt

            from hwprof.runtimes.tensorrt import TensorRtRuntime
        cache = timing_cache_path(tensorrt.__version__, Gpu())  # of all engines that were built for this GPU
        source = path.with_suffix(".onnx")
        source.write_bytes(onnx_of(module, spec, symmetric=True).SerializeToString())
        try:
            TensorRtRuntime().build_engine(
                source,
                path,
                Target(runtime="tensorrt", precision=spec.precision, batch=spec.batch),
                batches=(1, spec.batch, self.largest_batch),
                timing_cache=cache,
                inspector=path.with_suffix(".layers.json"),
            )
        except (MeasurementError, TargetError) as error:
            raise ExportError(f"TensorRT cannot build {path.name}: {error}") from error
        shutil.copyfile(cache, path.with_suffix(".timing"))

    def load(self, path: Path, precision: str) -> Infer:
        return load_in("tensorrt", path, precision)

    def read_metadata(self, path: Path) -> dict[str, str]:
        return read_metadata(path.with_suffix(".onnx"))
