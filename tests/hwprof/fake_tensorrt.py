"""A stand-in for the tensorrt package, of any version, on the stand-in for the driver (fake_driver.c).

It has what our code uses and nothing else, under the names that the real bindings have; test_tensorrt_contract.py
compares it with them. An "engine" is JSON; ONNX Runtime computes what it does, or, if that is nothing but additions, it
doubles its input. It takes 0.1 ms for every layer.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime

MS_PER_LAYER = 0.1
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16}
_TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 7: "INT64"}


class DataType(enum.IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, BF16, INT64 = range(8)


class DataType8(enum.IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8 = range(6)


class BuilderFlag8(enum.IntEnum):
    FP16, INT8, TF32, VERSION_COMPATIBLE = range(4)


class BuilderFlag10(enum.IntEnum):
    TF32, VERSION_COMPATIBLE = range(2)


class NetworkFlag8(enum.IntEnum):
    EXPLICIT_BATCH = 0


class NetworkFlag10(enum.IntEnum):
    STRONGLY_TYPED = 1


class ProfilingVerbosity(enum.IntEnum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class HardwareCompatibilityLevel(enum.IntEnum):
    NONE, AMPERE_PLUS = range(2)


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class LayerInformationFormat(enum.IntEnum):
    ONELINE, JSON = range(2)


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IProfiler:
    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class IHostMemory(bytes):
    """Only its content can be read, as a buffer."""


@dataclass
class Recorder:
    """What happened, in order, and what is to go wrong."""

    driver: ctypes.CDLL
    version: str
    events: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...], dtype: DataType) -> None:
        self._facts = name, shape, dtype

    @property
    def name(self) -> str:
        return self._facts[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._facts[1]

    @property
    def dtype(self) -> DataType:
        return self._facts[2]


class ILayer:
    def __init__(self, name: str, output: ITensor) -> None:
        self._name, self._output = name, output

    @property
    def name(self) -> str:
        return self._name

    @property
    def num_outputs(self) -> int:
        return 1

    def get_output(self, index: int) -> ITensor:
        return self._output


class INetworkDefinition:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._layers: list[ILayer] = []
        self._inputs: list[ITensor] = []
        self._outputs: list[tuple[str, tuple[int, ...], str]] = []
        self._model = b""

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]


class ParserError8:
    def node(self) -> int:
        return 0

    def desc(self) -> str:
        return "no importer registered for op: Strange"


class ParserError10(ParserError8):
    def node_name(self) -> str:
        return "b3:strange"

    def node_operator(self) -> str:
        return "Strange"


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._recorder = network, network._recorder
        self._strange = False

    @property
    def num_errors(self) -> int:
        return int(self._strange)

    def get_error(self, index: int) -> ParserError8:
        return ParserError8() if self._recorder.major < 10 else ParserError10()

    def parse_from_file(self, model: str) -> bool:
        return self.parse(Path(model).read_bytes())

    def parse(self, model: bytes) -> bool:
        try:
            loaded = onnx.load_from_string(model)
        except Exception:
            return False
        if not loaded.graph.node:
            return True  # no bytes at all are an empty model
        self._recorder.events.append(f"parse opset {loaded.opset_import[0].version}")
        self._strange = any(node.op_type == "Strange" for node in loaded.graph.node)
        if self._strange:
            return False
        for value in loaded.graph.input:
            shape, dtype = _facts(value)
            self._network._inputs.append(ITensor(value.name, shape, DataType[dtype]))
        for node in loaded.graph.node:
            dtype = DataType[node.doc_string] if node.doc_string else self._network._inputs[0].dtype
            self._network._layers.append(ILayer(node.name, ITensor(node.output[0], (), _dtype(node) or dtype)))
        self._network._model = model
        self._network._outputs = [(value.name, *_facts(value)) for value in loaded.graph.output]
        return True


def _facts(value: onnx.ValueInfoProto) -> tuple[tuple[int, ...], str]:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)
    return shape, _TYPES[tensor.elem_type]


def _dtype(node: onnx.NodeProto) -> DataType | None:
    """What a node computes in, as far as that is told by the node alone."""
    if node.op_type == "QuantizeLinear":
        return DataType.INT8
    to = [attribute.i for attribute in node.attribute if attribute.name == "to"]
    return DataType[_TYPES[to[0]]] if to else None


class ITimingCache:
    def __init__(self, recorder: Recorder, content: bytes) -> None:
        self._recorder, self._entries = recorder, {*content.decode().split()}

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._recorder.events.append("combine timing caches")
        self._entries |= input_cache._entries
        return True

    def serialize(self) -> IHostMemory:
        return IHostMemory(" ".join(sorted(self._entries)).encode())


class IOptimizationProfile:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self._recorder.events.append(f"profile {input} {min} {opt} {max}")


class IBuilderConfig:
    builder_optimization_level: int
    profiling_verbosity: ProfilingVerbosity
    hardware_compatibility_level: HardwareCompatibilityLevel

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._cache: ITimingCache | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            self._recorder.events.append(f"{name} = {getattr(value, 'name', value)}")
        super().__setattr__(name, value)

    def set_flag(self, flag: Any) -> None:
        self._recorder.events.append(f"set {flag.name}")

    def clear_flag(self, flag: Any) -> None:
        self._recorder.events.append(f"clear {flag.name}")

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._recorder.events.append(f"{pool.name} <= {pool_size}")

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._recorder.events.append("add profile")
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        return None if serialized_timing_cache == b"garbage" else ITimingCache(self._recorder, serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._recorder.events.append(f"timing cache with {len(cache._entries)}")
        if "another-gpu" in cache._entries:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self._recorder: Recorder = type(self).recorder  # type: ignore[attr-defined]

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        self._recorder.events.append(f"network flags {flags}")
        return INetworkDefinition(self._recorder)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._recorder)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile(self._recorder)

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        self._recorder.events.append("build")
        if not network._layers:
            return None
        if "build" in self._recorder.broken:
            self._logger.log(ILogger.Severity.WARNING, "a warning that nobody needs")
            self._logger.log(ILogger.Severity.ERROR, "no implementation for node b3:conv")
            return None
        assert config._cache is not None
        config._cache._entries |= {layer.name.replace(" ", "") for layer in network._layers}
        tensor = network._inputs[0]
        engine = {
            "onnx": base64.b64encode(network._model).decode(),
            "input": [tensor.name, tensor.shape, tensor.dtype.name],
            "output": network._outputs[0],
            "layers": [layer.name for layer in network._layers],
            "detailed": config.profiling_verbosity == ProfilingVerbosity.DETAILED,
        }
        return IHostMemory(json.dumps(engine).encode())


class EngineInspector:
    def __init__(self, engine: dict[str, Any]) -> None:
        self._engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format == LayerInformationFormat.JSON
        names = self._engine["layers"]
        if not self._engine["detailed"]:
            return json.dumps({"Layers": [_kernel(name) for name in names]})
        layers = [
            {"Name": _kernel(name), "Metadata": f"[ONNX Layer: {name}]\x1f[ONNX Layer: {name}.2]"} for name in names
        ]
        return json.dumps({"Layers": layers, "Bindings": []})


def _kernel(name: str) -> str:
    """As TensorRT names kernels: after their nodes, or, where its compiler made them, as it likes."""
    return f"__myl_Add_{name.partition(':')[2]}" if name.startswith("b1:") else f"{name} + {name}.2"


class ICudaEngine:
    def __init__(self, recorder: Recorder, engine: dict[str, Any]) -> None:
        self._recorder, self._engine = recorder, engine
        model = base64.b64decode(engine["onnx"])
        adds = {node.op_type for node in onnx.load_from_string(model).graph.node} == {"Add"}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = None if adds else onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return 2

    @property
    def num_layers(self) -> int:
        return len(self._engine["layers"])

    def get_tensor_name(self, index: int) -> str:
        return str(self._engine[["input", "output"][index]][0])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == self._engine["input"][0] else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensor(name)[1])

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensor(name)[2]]

    def _tensor(self, name: str) -> Any:
        return self._engine["input" if name == self._engine["input"][0] else "output"]

    def _compute(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self._session is None:
            if values.dtype != np.uint16:
                return values * 2
            return np.where(values & 0x7FFF, values + 0x80, values)  # the bits of bfloat16: one more in the exponent
        (output,) = self._session.run(None, {self._engine["input"][0]: values})
        return np.asarray(output)

    def create_execution_context(self) -> IExecutionContext | None:
        return None if "context" in self._recorder.broken else IExecutionContext(self._recorder, self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._engine)


class IExecutionContext:
    profiler: IProfiler

    def __init__(self, recorder: Recorder, engine: ICudaEngine) -> None:
        self._recorder, self._engine = recorder, engine
        self._profiler: IProfiler | None = None
        self._addresses: dict[str, int] = {}
        self._bound: tuple[int, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__("_profiler" if name == "profiler" else name, value)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._bound = tuple(shape)
        return all(have in (-1, want) for have, want in zip(self._engine.get_tensor_shape(name), shape, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == self._engine._engine["input"][0]:
            return self._bound
        return (self._bound[0], *self._engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory > 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        if "execute" in self._recorder.broken or len(self._addresses) != 2 or not stream_handle:
            return False
        self._recorder.events.append("execute")
        source, target = (self._engine.get_tensor_name(index) for index in range(2))
        read, written = (_NUMPY[self._engine.get_tensor_dtype(name).name] for name in (source, target))
        size = math.prod(self._bound) * np.dtype(read).itemsize
        values = np.frombuffer(ctypes.string_at(self._addresses[source], size), read).reshape(self._bound)
        data = self._engine._compute(values).astype(written).tobytes()
        ctypes.memmove(self._addresses[target], data, len(data))
        for name in self._engine._engine["layers"]:
            self._recorder.driver.fake_work(ctypes.c_double(MS_PER_LAYER))
            if self._profiler is not None:
                self._profiler.report_layer_time(_kernel(name), MS_PER_LAYER)
        return True


class Runtime:
    engine_host_code_allowed: bool

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self._recorder: Recorder = type(self).recorder  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            self._recorder.events.append(f"{name} = {value}")
        super().__setattr__(name, value)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        try:
            return ICudaEngine(self._recorder, json.loads(serialized_engine))
        except ValueError:
            self._logger.log(ILogger.Severity.ERROR, "the plan is of another version")
            return None


PLAIN = (
    ProfilingVerbosity,
    HardwareCompatibilityLevel,
    MemoryPoolType,
    LayerInformationFormat,
    TensorIOMode,
    ILogger,
    IProfiler,
    IHostMemory,
    ITensor,
    ILayer,
    INetworkDefinition,
    OnnxParser,
    ITimingCache,
    IOptimizationProfile,
    IBuilderConfig,
    EngineInspector,
    ICudaEngine,
    IExecutionContext,
)


def classes_of(version: str) -> dict[str, type]:
    """The classes of that version under the names that they have in the package."""
    major = int(version.split(".")[0])
    old = major < 10
    classes: dict[str, type] = {
        **{kind.__name__: kind for kind in PLAIN},
        "Builder": Builder,
        "Runtime": Runtime,
        "DataType": DataType8 if old else DataType,
        "BuilderFlag": BuilderFlag8 if old else BuilderFlag10,
        "ParserError": ParserError8 if old else ParserError10,
    }
    if major < 11:  # our code asks for none since then
        classes["NetworkDefinitionCreationFlag"] = NetworkFlag8 if old else NetworkFlag10
    return classes


def fake_module(version: str, driver: Path) -> tuple[ModuleType, Recorder]:
    """The package, and what is recorded of its use."""
    recorder = Recorder(ctypes.CDLL(str(driver)), version)
    module = ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined]
    for name, kind in classes_of(version).items():
        made = type(name, (kind,), {"recorder": recorder}) if name in ("Builder", "Runtime") else kind
        setattr(module, name, made)
    return module, recorder
