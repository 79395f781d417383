"""ONNX Runtime on an NVIDIA GPU, by its CUDA or its TensorRT provider; needs the package onnxruntime-gpu.

Inputs and outputs are bound to memory of the GPU; the provider works on our stream, records a CUDA graph and replays
it, and is timed by events there. (What ONNX Runtime does before it launches the graph counts.)

A provider that cannot start is replaced by the CPU without an error, and so is a single node that it does not know:
either is refused here, as it would be a number of another machine. There are no node times: what ONNX Runtime's
profiler records of a GPU is when a kernel was launched, not how long it took.

TF32 is off unless asked for ("all+tf32"). The TensorRT provider has no switch for it, so there it is the environment
variable NVIDIA_TF32_OVERRIDE, which NVIDIA's libraries read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from hwprof.cuda import Gpu
from hwprof.errors import HwprofError, MeasurementError
from hwprof.runtimes import NodeProfile
from hwprof.runtimes.arrays import Array
from hwprof.runtimes.onnxruntime import DTYPES, LEVELS, bound_images, bound_shape
from hwprof.runtimes.options import require_one_thread, split_optimisation
from hwprof.runtimes.tensorrt_cache import writable_folder
from hwprof.target import Target
from hwprof.timing import Clock

_HINT = (
    "; if a library is missing or of another version, its message is on standard error, else the model has an operator "
    "that the provider does not know"
)
# The CUDA provider runs twice before it records a graph, and replays it from then on.
WARMUP_RUNS = 4


class OnnxRuntimeCuda:
    """The CUDA execution provider, on the first visible GPU."""

    provider = "CUDAExecutionProvider"

    def __init__(self) -> None:
        if self.provider not in ort.get_available_providers():
            raise ImportError(
                f"the installed onnxruntime {ort.__version__} is a build without {self.provider}, which is in the "
                "package onnxruntime-gpu; it cannot be installed beside onnxruntime"
            )
        self._opened: Gpu | None = None

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": ort.__version__, "provider": self.provider, **self._gpu.versions()}

    def clock(self, target: Target) -> Clock:
        self._chosen(target)  # what cannot be is refused before hours of profiling
        return Clock(wall=self._gpu.busy_ns, cpu=None)

    def load(self, path: Path, target: Target, *, profile_nodes: bool) -> OnnxGpuModel:
        level, options = self._chosen(target)
        settings = {"device_id": "0", "user_compute_stream": str(self._gpu.stream)}
        settings.update(self._settings(target, "tf32" in options))
        return OnnxGpuModel(path, target, level, (self.provider, settings), self._gpu)

    def _chosen(self, target: Target) -> tuple[str, frozenset[str]]:
        require_one_thread(target)
        return split_optimisation(target, LEVELS, ("tf32",))

    def _settings(self, target: Target, tf32: bool) -> dict[str, str]:
        return {
            "enable_cuda_graph": "1",
            "use_tf32": str(int(tf32)),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "cudnn_conv_use_max_workspace": "1",
        }

    @property
    def _gpu(self) -> Gpu:
        # The GPU first: without one, a provider fails with the name of some library.
        if self._opened is None:
            self._opened = Gpu()
            if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN out of NVIDIA's wheels; since 1.21
                ort.preload_dlls()
        return self._opened


class OnnxRuntimeTensorRt(OnnxRuntimeCuda):
    """The TensorRT execution provider; TensorRT itself must be there in the version that the provider was built for."""

    provider = "TensorrtExecutionProvider"

    def versions(self) -> dict[str, str]:
        return {**super().versions(), "tensorrt": _tensorrt_version()}

    def _settings(self, target: Target, tf32: bool) -> dict[str, str]:
        os.environ["NVIDIA_TF32_OVERRIDE"] = str(int(tf32))
        _tensorrt_version()
        folder = writable_folder("onnxruntime")
        return {
            # This provider wants words where the other one wants digits.
            "trt_cuda_graph_enable": "True",
            "trt_fp16_enable": str(target.precision != "fp32"),  # int8 as well: what is not quantised is in fp16
            "trt_int8_enable": str(target.precision == "int8"),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(folder),
        }


class OnnxGpuModel:
    """A session with its inputs and outputs bound to memory of the GPU."""

    def __init__(self, path: Path, target: Target, level: str, provider: tuple[str, dict[str, str]], gpu: Gpu) -> None:
        self._name, self._gpu = path.name, gpu
        options = ort.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        with _told(f"onnxruntime cannot run {path.name} on {provider[0]}", _HINT):
            self._session = ort.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
            if self._session.get_providers()[0] != provider[0]:
                raise RuntimeError("the provider did not start, and the CPU would take its place")
            self._bind(target)
            for _ in range(WARMUP_RUNS):
                self._launch()

    def run(self) -> None:
        with _told(f"onnxruntime cannot run {self._name}"):
            self._gpu.timed(self._launch)

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        shapes = [tuple(bound.shape()) for bound in self._inputs]
        if [array.shape for array in inputs] != shapes:
            raise MeasurementError(f"{self._name} takes inputs of {shapes}, got {[array.shape for array in inputs]}")
        with _told(f"onnxruntime cannot run {self._name}"):
            for bound, value, array in zip(self._inputs, self._session.get_inputs(), inputs):
                # In place: the recorded graph reads these very addresses.
                bound.update_inplace(np.ascontiguousarray(array, DTYPES[value.type]))
            self._gpu.synchronise()
            self._launch()
            self._gpu.synchronise()
            return [np.asarray(bound.numpy(), np.float32) for bound in self._outputs]

    def close(self) -> NodeProfile | None:
        self._gpu.synchronise()
        return None

    def _launch(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def _bind(self, target: Target) -> None:
        self._binding = self._session.io_binding()
        self._inputs, self._outputs = [], []
        for value in self._session.get_inputs():
            bound = ort.OrtValue.ortvalue_from_numpy(bound_images(value, target), "cuda", 0)
            self._binding.bind_ortvalue_input(value.name, bound)
            self._inputs.append(bound)
        for value in self._session.get_outputs():
            # A recorded graph writes to the same memory every time, so it is ours and not the session's.
            bound = ort.OrtValue.ortvalue_from_shape_and_type(bound_shape(value, target), DTYPES[value.type], "cuda", 0)
            self._binding.bind_ortvalue_output(value.name, bound)
            self._outputs.append(bound)


@contextlib.contextmanager
def _told(what: str, hint: str = "") -> Iterator[None]:
    """Errors of the runtime, which are of types of its own that it does not export, as ours."""
    try:
        yield
    except HwprofError:
        raise
    except Exception as error:
        raise MeasurementError(f"{what}: {error}{hint}") from error


def _tensorrt_version() -> str:
    """The version of TensorRT in this Python, whose libraries are found by others once it is imported."""
    try:
        import tensorrt
    except ImportError:
        return "unknown"  # installed for the whole machine, without its Python package
    return str(tensorrt.__version__)
