"""One file per runtime. A runtime loads a model file and gives one synchronous inference, and node times if it can."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from hwprof.errors import RuntimeMissingError, TargetError

if TYPE_CHECKING:
    from hwprof.runtimes.arrays import Array
    from hwprof.target import Target
    from hwprof.timing import Clock


@dataclass(frozen=True)
class Kind:
    """What a host must know of a runtime without having it: where its code is, what it runs, how to install it.

    `format` is the kind of model file ("onnx", "tflite", ...), `nodes` whether it tells the time of every node,
    `packages` what pip installs for it.
    """

    code: str
    format: str
    precisions: tuple[str, ...]
    nodes: bool
    packages: str


RUNTIMES = {
    "onnxruntime": Kind(
        "hwprof.runtimes.onnxruntime:OnnxRuntime", "onnx", ("fp32", "fp16", "int8"), True, "onnxruntime"
    ),
    "litert": Kind("hwprof.runtimes.litert:LiteRtRuntime", "tflite", ("fp32", "fp16", "int8"), True, "ai-edge-litert"),
    "openvino": Kind("hwprof.runtimes.openvino:OpenVino", "onnx", ("fp32", "fp16", "bf16", "int8"), True, "openvino"),
    "ncnn": Kind("hwprof.runtimes.ncnn:NcnnRuntime", "ncnn", ("fp32", "fp16", "bf16", "int8"), True, "ncnn"),
    "torch": Kind("hwprof.runtimes.torch_eager:TorchCpu", "torch", ("fp32", "fp16", "bf16"), False, "torch"),
    "torch-cuda": Kind("hwprof.runtimes.torch_cuda:TorchCuda", "torch", ("fp32", "fp16", "bf16"), False, "torch"),
    "tensorrt": Kind(
        "hwprof.runtimes.tensorrt:TensorRtRuntime",
        "onnx-symmetric",
        ("fp32", "fp16", "bf16", "int8"),
        True,
        "tensorrt",
    ),
    "onnxruntime-cuda": Kind(
        "hwprof.runtimes.onnxruntime_gpu:OnnxRuntimeCuda", "onnx", ("fp32", "fp16"), False, "onnxruntime-gpu"
    ),
    "onnxruntime-tensorrt": Kind(
        "hwprof.runtimes.onnxruntime_gpu:OnnxRuntimeTensorRt",
        "onnx-symmetric",
        ("fp32", "fp16", "int8"),
        False,
        "onnxruntime-gpu 'tensorrt<11'",
    ),
}


@dataclass(frozen=True)
class NodeProfile:
    """Node times of every run of a profiled session: `us[run][node]` in microseconds, for the nodes in `names`."""

    names: tuple[str, ...]
    us: tuple[tuple[float, ...], ...]


class LoadedModel(Protocol):
    """A model file on the device, ready to run."""

    def run(self) -> None:
        """One synchronous inference on inputs bound once."""

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs, float32, for float32 inputs of the shapes that were bound; never timed."""

    def close(self) -> NodeProfile | None:
        """Free the model; the node times of all runs, if it was loaded to profile nodes and the runtime gives them."""


class Runtime(Protocol):
    """A way to run model files. Raises RuntimeMissingError when constructed where it is not installed."""

    def versions(self) -> dict[str, str]:
        """Versions of everything in the runtime that changes latency; "accelerator" names a GPU or NPU, if one works.

        Raises AcceleratorError where the runtime is installed but what it needs (a GPU, a driver) is not there.
        """

    def clock(self, target: Target) -> Clock:
        """The clock that measures this runtime's work; asked for when the target is opened, and for every group.

        Raises DeviceError where the machine cannot run the target: its processor lacks the precision, say.
        """

    def load(self, path: Path, target: Target, *, profile_nodes: bool) -> LoadedModel:
        """Load a model file. Raises MeasurementError if it cannot be."""


def kind_of(name: str) -> Kind:
    """What is known of a runtime. Raises TargetError on an unknown name."""
    if name not in RUNTIMES:
        raise TargetError(f"unknown runtime {name!r}; known: {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def require_runnable(target: Target) -> Kind:
    """The kind of the target's runtime. Raises TargetError if there is no such runtime, or not in that precision."""
    kind = kind_of(target.runtime)
    if target.precision not in kind.precisions:
        raise TargetError(
            f"the runtime {target.runtime} has no precision {target.precision!r}; it has {', '.join(kind.precisions)}"
        )
    return kind


def make_runtime(name: str) -> Runtime:
    """The runtime of that name. Raises TargetError on an unknown name, RuntimeMissingError if it is not installed."""
    kind = kind_of(name)
    module, attribute = kind.code.split(":")
    try:
        return cast(Runtime, getattr(importlib.import_module(module), attribute)())
    except ImportError as error:
        raise RuntimeMissingError(
            f"the runtime {name} is not installed here ({error}); pip install {kind.packages}"
        ) from error
