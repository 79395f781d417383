"""TensorRT 8.6, 10 and 11: engines built on the device, run as one CUDA graph, timed by events on the GPU.

A model file is ONNX, built into an engine here and kept (see hwprof.runtimes.tensorrt_cache), or an engine (.engine,
.plan). One engine serves both passes, so that the layers that are profiled are those that are timed: the first pass
runs it as a graph, the pass with `profile_nodes` runs it layer by layer under TensorRT's profiler. A layer's name holds
the names of the ONNX nodes that it was made of; where TensorRT gave a kernel another name, they stand behind it.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt

from hwprof.cuda import Buffer, Gpu, Graph
from hwprof.errors import HwprofError, MeasurementError
from hwprof.files import write_atomic
from hwprof.runtimes import NodeProfile
from hwprof.runtimes.arrays import Array, random_images
from hwprof.runtimes.tensorrt_builder import Log, Settings, build_plan, settings_for
from hwprof.runtimes.tensorrt_cache import engine_path, save_engine, timing_cache_path
from hwprof.target import Target
from hwprof.timing import Clock

ENGINES = (".engine", ".plan")
# TensorRT's types as NumPy's; bfloat16 has none, and travels as the upper half of a float32.
_DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.uint16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class BuildReport:
    """An engine that was built: how long it took, its size, its number of layers, the inspector's JSON about them."""

    seconds: float
    size_bytes: int
    layers: int
    inspector: str


class TensorRtRuntime:
    """TensorRT on the first visible GPU."""

    def __init__(self) -> None:
        self._opened: tuple[Gpu, Log, Any] | None = None

    def versions(self) -> dict[str, str]:
        return {"tensorrt": trt.__version__, **self._gpu.versions()}

    def clock(self, target: Target) -> Clock:
        settings_for(target)  # what cannot be is refused before hours of profiling
        return Clock(wall=self._gpu.busy_ns, cpu=None)

    def load(self, path: Path, target: Target, *, profile_nodes: bool) -> TensorRtModel:
        settings = settings_for(target)
        try:
            plan = path.read_bytes() if path.suffix in ENGINES else self._plan(path, settings)
        except HwprofError:  # no GPU, say, which is an OSError too
            raise
        except OSError as error:
            raise MeasurementError(f"{path.name} cannot be read: {error}") from error
        return TensorRtModel(self._gpu, self._engine(plan, path.name, settings), path.name, target.batch, profile_nodes)

    def build_engine(
        self,
        model: Path,
        engine: Path,
        target: Target,
        *,
        batches: tuple[int, int, int] | None = None,
        workspace_bytes: int | None = None,
        timing_cache: Path | None = None,
        inspector: Path | None = None,
        detailed: bool = True,
    ) -> BuildReport:
        """Build an ONNX file into an engine file for the target, to be shipped.

        `batches` are the smallest, the usual and the largest batch where the model's is dynamic (else all the
        target's), `inspector` a file to write the engine's layers to (JSON), `detailed` whether the engine knows more
        of its layers than their names. Raises TargetError on settings that there are not, MeasurementError on a model
        that cannot be built, AcceleratorError without a GPU.
        """
        settings = settings_for(target, batches=batches, workspace_bytes=workspace_bytes, detailed=detailed)
        begin = time.perf_counter()
        plan = build_plan(model, settings, timing_cache or timing_cache_path(trt.__version__, self._gpu))
        seconds = time.perf_counter() - begin
        built = self._engine(plan, model.name, settings)
        report = BuildReport(seconds, len(plan), built.num_layers, _inspected(built))
        write_atomic(engine, plan)
        if inspector is not None:
            write_atomic(inspector, report.inspector)
        return report

    @property
    def _gpu(self) -> Gpu:
        return self._open()[0]

    def _open(self) -> tuple[Gpu, Log, Any]:
        # The GPU first: without one, TensorRT's own constructors fail in ways of their own, 8.6 by ending the process.
        if self._opened is None:
            gpu, log = Gpu(), Log()
            self._opened = gpu, log, trt.Runtime(log)
        return self._opened

    def _plan(self, model: Path, settings: Settings) -> bytes:
        kept = engine_path(model, trt.__version__, self._gpu, settings.as_json())
        if kept.is_file():
            return kept.read_bytes()
        plan = build_plan(model, settings, timing_cache_path(trt.__version__, self._gpu))
        save_engine(kept, plan)
        return plan

    def _engine(self, plan: bytes, name: str, settings: Settings) -> Any:
        _, log, runtime = self._open()
        # A version-compatible engine brings its own runtime as code; run it only where that was asked for.
        runtime.engine_host_code_allowed = settings.version_compatible
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise MeasurementError(f"TensorRT {trt.__version__} cannot load the engine of {name}: {log.take()}")
        return engine


class TensorRtModel:
    """An engine with its inputs and outputs bound to memory of the GPU, once."""

    def __init__(self, gpu: Gpu, engine: Any, name: str, batch: int, profile_nodes: bool) -> None:
        self._gpu, self._engine, self._name = gpu, engine, name
        self._graph: Graph | None = None
        self._layers: Layers | None = None
        self._buffers: dict[str, Buffer] = {}
        context = engine.create_execution_context()
        if context is None:
            raise MeasurementError(f"the GPU has no room for {name}; measure fewer models at once")
        self._context = context
        try:
            self._bind(batch)
            # TensorRT finishes its preparations in the first run, which therefore cannot be captured.
            self._enqueue()
            gpu.synchronise()
            if profile_nodes:
                self._layers = Layers()
                context.profiler = self._layers
            else:
                self._graph = gpu.capture(self._enqueue)
        except BaseException:
            with contextlib.suppress(MeasurementError):  # the first error counts
                self._free()
            raise

    def run(self) -> None:
        if self._layers is not None:
            self._layers.begin_run()
        self._gpu.timed(self._enqueue if self._graph is None else self._graph.launch)

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        names = self._names(trt.TensorIOMode.INPUT)
        shapes = [self._shape(name) for name in names]
        if [array.shape for array in inputs] != shapes:
            raise MeasurementError(f"{self._name} takes inputs of {shapes}, got {[array.shape for array in inputs]}")
        for name, array in zip(names, inputs):
            self._buffers[name].write(_encode(array, self._type(name)))
        self._enqueue()
        return [
            _decode(self._buffers[name].read(), self._type(name)).reshape(self._shape(name))
            for name in self._names(trt.TensorIOMode.OUTPUT)
        ]

    def close(self) -> NodeProfile | None:
        layers, self._layers = self._layers, None
        origins = _origins(_inspected(self._engine)) if layers else {}
        self._free()
        return layers.profile(origins) if layers else None

    def _free(self) -> None:
        self._gpu.synchronise()
        graph, self._graph = self._graph, None
        buffers, self._buffers = self._buffers, {}
        self._context = self._engine = None
        if graph is not None:
            graph.close()
        for buffer in buffers.values():
            buffer.close()

    def _bind(self, batch: int) -> None:
        names = self._names(trt.TensorIOMode.INPUT)
        for name in names:
            shape = tuple(self._engine.get_tensor_shape(name))
            bound = tuple(batch if extent < 0 else extent for extent in shape)
            if bound[:1] != (batch,) or not self._context.set_input_shape(name, bound):
                raise MeasurementError(f"input {name} of {self._name} is {shape}, which has no batch {batch}")
        for name in (*names, *self._names(trt.TensorIOMode.OUTPUT)):
            dtype = _DTYPES[self._type(name)]
            self._buffers[name] = Buffer(self._gpu, math.prod(self._shape(name)) * np.dtype(dtype).itemsize)
            if not self._context.set_tensor_address(name, self._buffers[name].address):
                raise MeasurementError(f"TensorRT {trt.__version__} cannot bind {name} of {self._name}")
        for name in names:
            self._buffers[name].write(_encode(random_images(self._shape(name)), self._type(name)))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._gpu.stream):
            raise MeasurementError(f"TensorRT {trt.__version__} cannot run {self._name}")

    def _names(self, mode: Any) -> list[str]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == mode]

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._context.get_tensor_shape(name))

    def _type(self, name: str) -> str:
        kind = str(self._engine.get_tensor_dtype(name).name)
        if kind not in _DTYPES:
            raise MeasurementError(f"{name} of {self._name} is {kind}: no such inputs and outputs are known")
        return kind


class Layers(trt.IProfiler):  # type: ignore[misc]
    """Collects the layer times of every run."""

    def __init__(self) -> None:
        super().__init__()
        self._runs: list[list[tuple[str, float]]] = []

    def begin_run(self) -> None:
        self._runs.append([])

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        if self._runs:
            self._runs[-1].append((layer_name, ms * 1e3))

    def profile(self, origins: dict[str, str]) -> NodeProfile:
        """All runs; `origins` are the ONNX nodes of layers whose own names do not tell them."""
        names = [name for name, _ in self._runs[0]] if self._runs else []
        if not names or any([name for name, _ in run] != names for run in self._runs):
            raise MeasurementError("the profiler's runs do not list the same layers; the profile is incomplete")
        full = tuple(f"{name} {origins[name]}" if name in origins else name for name in names)
        return NodeProfile(full, tuple(tuple(us for _, us in run) for run in self._runs))


def _inspected(engine: Any) -> str:
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _origins(inspected: str) -> dict[str, str]:
    """Layer -> the ONNX nodes that it was made of, for layers that are not named after them; empty if not told."""
    try:
        layers = json.loads(inspected)["Layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    origins = {}
    for layer in layers:
        if not isinstance(layer, dict):  # an engine that knows no more than names
            continue
        # "[ONNX Layer: b0:conv]\x1f[ONNX Layer: b0:relu]"
        nodes = [part.split("]")[0] for part in str(layer.get("Metadata", "")).split("[ONNX Layer: ")[1:]]
        if not all(node in str(layer.get("Name")) for node in nodes):
            origins[str(layer.get("Name"))] = f"[{' + '.join(nodes)}]"
    return origins


def _encode(array: Array, kind: str) -> bytes:
    """The numbers as bytes of one of TensorRT's types."""
    if kind != "BF16":
        return array.astype(_DTYPES[kind]).tobytes()
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    # To the nearest, ties to even.
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()


def _decode(data: bytes, kind: str) -> Array:
    """Bytes of one of TensorRT's types as float32, flat."""
    values: Array = np.frombuffer(data, _DTYPES[kind])
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
