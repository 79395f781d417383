"""OpenVINO on the CPU: ONNX files as they are, one stream, inputs bound once, node times from its own counters.

Set for every model: the hint LATENCY with one stream and the target's threads; the arithmetic that the precision
names, since OpenVINO computes fp32 files in bfloat16, unasked, where the processor can (int8 leaves the rest float32);
no pinning and no choice of cores or hyper-threads of its own, since the agent's process is where it should be. With one
thread it computes in the thread that calls it, so CPU time is that of the inference; its other threads sleep.

Its counters give, for every node, the average over all inferences so far in whole microseconds. So a node's time in a
run is its share, over all runs that were not interrupted, of the time of that run; half a microsecond is added to make
up for what is cut off. A node faster than one microsecond is not seen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from hwprof.errors import DeviceError, MeasurementError, TargetError
from hwprof.runtimes import NodeProfile
from hwprof.runtimes.arrays import Array, random_images
from hwprof.target import Target
from hwprof.timing import Clock

# precision -> what OpenVINO calls the arithmetic, and the capability that the processor must have for it
ARITHMETIC = {"fp32": ("f32", "FP32"), "fp16": ("f16", "FP16"), "bf16": ("bf16", "BF16"), "int8": ("f32", "INT8")}
_DTYPES = {"f32": np.float32, "f16": np.float16, "i64": np.int64}
_MICROSECOND = timedelta(microseconds=1)
# A run that took so many times the median was interrupted.
_INTERRUPTED = 1.5


class OpenVino:
    """The CPU plugin."""

    def __init__(self) -> None:
        self._core = ov.Core()

    def versions(self) -> dict[str, str]:
        return {"openvino": ov.get_version(), "openvino_cpu": " ".join(self._capabilities)}

    def clock(self, target: Target) -> Clock:
        self._require_arithmetic(target)
        # With several threads the process's CPU time is the sum of theirs, not the time of an inference.
        return Clock() if target.threads == 1 else Clock(cpu=None)

    def load(self, path: Path, target: Target, *, profile_nodes: bool) -> OpenVinoModel:
        if target.optimisation != "all":
            raise TargetError(f"openvino has no optimisation level {target.optimisation!r}; it has all")
        self._require_arithmetic(target)
        return OpenVinoModel(self._core, path, target, profile_nodes)

    @property
    def _capabilities(self) -> list[str]:
        try:
            return sorted(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        except RuntimeError as error:
            raise DeviceError(f"openvino finds no CPU that it can use: {error}") from error

    def _require_arithmetic(self, target: Target) -> None:
        """Refuse a precision that OpenVINO would silently compute in another one."""
        if ARITHMETIC[target.precision][1] not in self._capabilities:
            known = [precision for precision, (_, needed) in ARITHMETIC.items() if needed in self._capabilities]
            raise DeviceError(
                f"openvino does not compute in {target.precision} on this processor, which has "
                f"{' '.join(self._capabilities)}; set the precision to one of {', '.join(known)}"
            )


class OpenVinoModel:
    """A compiled model with its inputs bound."""

    def __init__(self, core: ov.Core, path: Path, target: Target, profile_nodes: bool) -> None:
        self._name = path.name
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": target.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": ARITHMETIC[target.precision][0],
            "ENABLE_CPU_PINNING": False,
            "ENABLE_HYPER_THREADING": True,
            "SCHEDULING_CORE_TYPE": "ANY_CORE",
            "PERF_COUNT": profile_nodes,
        }
        try:
            model = core.read_model(path)
            images = {port.any_name: _images(port, target) for port in model.inputs}
            model.reshape({name: list(array.shape) for name, array in images.items()})
            self._compiled = core.compile_model(model, "CPU", settings)
            self._request = self._compiled.create_infer_request()
            self._inputs = [ov.Tensor(array, shared_memory=True) for array in images.values()]
            for index, tensor in enumerate(self._inputs):
                self._request.set_input_tensor(index, tensor)
        except MeasurementError:
            raise
        except Exception as error:  # RuntimeError of the library, MemoryError of inputs of absurd shapes
            raise MeasurementError(f"openvino cannot load {path.name}: {_reason(error)}") from error
        threads = self._compiled.get_property("INFERENCE_NUM_THREADS")
        if threads != target.threads:
            raise TargetError(
                f"openvino would use {threads} threads here, not {target.threads}: set threads = {threads}"
            )
        self._counters = _Counters() if profile_nodes else None

    def run(self) -> None:
        if self._counters is None:
            self._infer()
            return
        begin = time.perf_counter_ns()
        self._infer()
        self._counters.read(self._request, (time.perf_counter_ns() - begin) / 1000)

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        shapes = [tuple(tensor.shape) for tensor in self._inputs]
        if [array.shape for array in inputs] != shapes:
            raise MeasurementError(
                f"{self._name} takes inputs of the shapes {shapes}, got {[array.shape for array in inputs]}"
            )
        for tensor, array in zip(self._inputs, inputs):
            tensor.data[...] = array
        return [np.array(output, np.float32) for output in self._infer().values()]

    def close(self) -> NodeProfile | None:
        names = self._node_names() if self._counters is not None else ()
        del self._request, self._compiled
        return None if self._counters is None else self._counters.profile(names)

    def _infer(self) -> Any:
        try:
            return self._request.infer(share_outputs=True)  # without it, every output would be copied
        except RuntimeError as error:
            raise MeasurementError(f"openvino cannot run {self._name}: {_reason(error)}") from error

    def _node_names(self) -> tuple[str, ...]:
        """A kernel's name is that of one node; the names of all that were fused into it are better, where known."""
        fused: dict[str, str] = {}
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            fused[node.get_friendly_name()] = (
                facts["originalLayersNames"].astype(str) if "originalLayersNames" in facts else ""
            )
        return tuple(fused.get(info.node_name) or info.node_name for info in self._request.profiling_info)


class _Counters:
    """Readings of a request's counters, one after every inference."""

    def __init__(self) -> None:
        self._totals: list[Array] = []
        self._walls: list[float] = []

    def read(self, request: ov.InferRequest, wall_us: float) -> None:
        averages = np.array([info.real_time // _MICROSECOND for info in request.profiling_info], np.int64)
        self._totals.append(averages * (len(self._totals) + 1))
        self._walls.append(wall_us)

    def profile(self, names: tuple[str, ...]) -> NodeProfile:
        """Raises MeasurementError if there was nothing to count."""
        if not self._totals or {len(total) for total in self._totals} != {len(names)}:
            raise MeasurementError("openvino's counters do not list the same nodes in every run, or there was no run")
        walls = np.array(self._walls)
        # What a run added to a total is known to within twice the number of inferences, but its errors make up for
        # those of the runs before and after it, so that of an average is about a microsecond.
        steps = np.diff(np.array(self._totals), axis=0, prepend=np.zeros((1, len(names)), np.int64))
        counted = walls <= _INTERRUPTED * np.median(walls)
        counted[0] = False  # the first inference sets memory up
        if not counted.any():
            counted[:] = True
        us = steps[counted].mean(axis=0)
        seen = us > 0
        if not seen.any():
            raise MeasurementError("openvino's counters show no node of a microsecond or more: nothing to profile")
        rows = np.outer(walls / walls[counted].mean(), us[seen] + 0.5)
        return NodeProfile(
            tuple(name for name, kept in zip(names, seen) if kept), tuple(tuple(row) for row in rows.tolist())
        )


def _images(port: Any, target: Target) -> Array:
    """Random inputs; a dynamic first dimension is the batch, no other one can be guessed."""
    shape, kind = port.partial_shape, port.element_type.get_type_name()
    if shape.rank.is_dynamic or kind not in _DTYPES:
        raise MeasurementError(f"{port.any_name} of shape {shape}, type {kind}: only the batch may be dynamic")
    extents = [
        target.batch if axis == 0 and extent.is_dynamic else -1 if extent.is_dynamic else extent.get_length()
        for axis, extent in enumerate(shape)
    ]
    if not all(extent > 0 for extent in extents):
        raise MeasurementError(f"{port.any_name} of shape {shape}, type {kind}: only the batch may be dynamic")
    if extents and extents[0] != target.batch:
        raise MeasurementError(f"{port.any_name} has batch {extents[0]}, the target has batch {target.batch}")
    return random_images(extents, _DTYPES[kind])


def _reason(error: Exception) -> str:
    """What OpenVINO complains of, without the places in its sources where that was passed on."""
    lines = [line.strip() for line in str(error).splitlines()]
    passed_on = ("Exception from", "Check '", "FrontEnd API failed", "Summary:")
    return " ".join(line for line in lines if line and not line.startswith(passed_on))[:500] or repr(error)
