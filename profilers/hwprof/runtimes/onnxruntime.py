"""ONNX Runtime on the CPU: sequential execution, inputs bound once, node times from its own profiler.

fp16 files run, but on x86 processors there are no convolutions in half precision: weights become float32 when the file
is loaded and casts stand around what does have half-precision kernels (ReLU, clips, hard-swish taken to pieces), so
they are slower than fp32 files, 1.1 to 2 times here. int8 files need QDQ pairs around every operator that shall
compute in int8; what has none, and hard-swish in any case, computes in float32 between conversions. Of bfloat16 there
are no kernels at all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from hwprof.errors import MeasurementError, TargetError
from hwprof.runtimes import NodeProfile
from hwprof.runtimes.arrays import Array, random_images
from hwprof.target import Target
from hwprof.timing import Clock

LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
_KERNEL = "_kernel_time"
# The name of a node that was moved behind a cast begins with this; what follows is the name it was given.
_MOVED = "InsertedPrecisionFreeCast_"


class OnnxRuntime:
    """The CPU execution provider."""

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": ort.__version__, "provider": "CPUExecutionProvider"}

    def clock(self, target: Target) -> Clock:
        # With several threads the process's CPU time is the sum of theirs, not the time of an inference.
        return Clock() if target.threads == 1 else Clock(cpu=None)

    def load(self, path: Path, target: Target, *, profile_nodes: bool) -> OnnxModel:
        if target.optimisation not in LEVELS:
            raise TargetError(
                f"onnxruntime has no optimisation level {target.optimisation!r}; it has {', '.join(LEVELS)}"
            )
        return OnnxModel(path, target, profile_nodes)


class OnnxModel:
    """A session with its inputs bound."""

    def __init__(self, path: Path, target: Target, profile_nodes: bool) -> None:
        self._name = path.name
        options = ort.SessionOptions()
        options.intra_op_num_threads = target.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = LEVELS[target.optimisation]
        options.log_severity_level = 3
        # A spinning pool of an idle session would steal the core from the one that is being timed.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if target.threads > 1 else "0")
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if profile_nodes:
            self._folder = tempfile.TemporaryDirectory(prefix="hwprof-")
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self._binding = self._session.io_binding()
            for value in self._session.get_inputs():
                self._binding.bind_ortvalue_input(
                    value.name, ort.OrtValue.ortvalue_from_numpy(bound_images(value, target))
                )
            for value in self._session.get_outputs():
                self._binding.bind_output(value.name, "cpu")
        except MeasurementError:
            raise
        except Exception as error:  # the runtime raises its own unexported types
            raise MeasurementError(f"onnxruntime cannot load {path.name}: {error}") from error

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise MeasurementError(f"onnxruntime cannot run {self._name}: {error}") from error

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        expected = self._session.get_inputs()
        if len(inputs) != len(expected):
            raise MeasurementError(f"{self._name} has {len(expected)} inputs, got {len(inputs)}")
        feeds = {value.name: array.astype(DTYPES[value.type]) for value, array in zip(expected, inputs)}
        try:
            return [np.asarray(output, np.float32) for output in self._session.run(None, feeds)]
        except Exception as error:
            raise MeasurementError(f"onnxruntime cannot run {self._name}: {error}") from error

    def close(self) -> NodeProfile | None:
        if self._folder is None:
            return None
        try:
            events = json.loads(Path(self._session.end_profiling()).read_text())
        except ValueError as error:
            raise MeasurementError(
                f"the node profile in {self._folder.name} is incomplete ({error}): is the disk full? Free some space"
            ) from error
        finally:
            self._folder.cleanup()
        return _node_profile(events)


def bound_images(value: Any, target: Target) -> Array:
    """Random inputs, of the type that the model takes."""
    return random_images(bound_shape(value, target), DTYPES[value.type])


def bound_shape(value: Any, target: Target) -> list[int]:
    """Shape of an input or output; a dynamic first dimension is the batch, no other one can be guessed."""
    shape = [
        target.batch if axis == 0 and not isinstance(extent, int) else extent for axis, extent in enumerate(value.shape)
    ]
    if not all(isinstance(extent, int) and extent > 0 for extent in shape) or value.type not in DTYPES:
        raise MeasurementError(f"{value.name} of shape {value.shape}, type {value.type}: only the batch may be dynamic")
    if shape and shape[0] != target.batch:
        raise MeasurementError(f"{value.name} has batch {shape[0]}, the target has batch {target.batch}")
    return shape


def _node_profile(events: list[dict[str, Any]]) -> NodeProfile:
    """Split the profiler's flat list of events into runs: each run's nodes are followed by its `model_run` event."""
    runs: list[list[tuple[str, float]]] = []
    current: list[tuple[str, float]] = []
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            current.append((name[: -len(_KERNEL)].replace(_MOVED, ""), float(event["dur"])))
        elif name == "model_run":
            runs.append(current)
            current = []
    names = tuple(name for name, _ in runs[0]) if runs else ()
    if not names or any(tuple(name for name, _ in run) != names for run in runs):
        raise MeasurementError("the profiler's runs do not list the same nodes; the profile is incomplete")
    return NodeProfile(names, tuple(tuple(us for _, us in run) for run in runs))
