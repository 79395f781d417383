"""LiteRT (TensorFlow Lite) on the CPU: the XNNPACK delegate, inputs bound once, one `invoke` an inference.

Optimisation "all" is XNNPACK, which every app gets by default; "basic" is LiteRT's own kernels without a delegate. The
precision is the file's: halves are computed in halves where the file allows it and the CPU can. XNNPACK's idle workers
sleep, so a model that waits for its turn takes nothing from the one that is timed.

Files hold images channels last, hosts send them channels first, so an input with four axes is transposed if that gives
the file's shape, and is taken as it is where only that fits; outputs with four axes then come back channels first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ai_edge_litert
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from hwprof.errors import MeasurementError, TargetError
from hwprof.runtimes import NodeProfile
from hwprof.runtimes.arrays import Array, random_images
from hwprof.runtimes.litert_nodes import NodeProfiler
from hwprof.target import Target
from hwprof.timing import Clock

LEVELS = {
    "all": OpResolverType.BUILTIN,
    "basic": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}


class LiteRtRuntime:
    """The interpreter of the package ai-edge-litert."""

    def versions(self) -> dict[str, str]:
        return {"litert": ai_edge_litert.__version__, "delegate": "XNNPACK"}

    def clock(self, target: Target) -> Clock:
        # With several threads the process's CPU time is the sum of theirs, not the time of an inference.
        return Clock() if target.threads == 1 else Clock(cpu=None)

    def load(self, path: Path, target: Target, *, profile_nodes: bool) -> LiteRtModel:
        if target.optimisation not in LEVELS:
            raise TargetError(f"litert has no optimisation level {target.optimisation!r}; it has {', '.join(LEVELS)}")
        return LiteRtModel(path, target, profile_nodes)


class LiteRtModel:
    """An interpreter with its inputs bound."""

    def __init__(self, path: Path, target: Target, profile_nodes: bool) -> None:
        self._name = path.name
        self._profiler: NodeProfiler | None = None
        try:
            self._interpreter = Interpreter(
                model_path=str(path),
                num_threads=target.threads,
                experimental_op_resolver_type=LEVELS[target.optimisation],
            )
            for value in self._interpreter.get_input_details():
                shape = _bound_shape(value, target)
                if shape != tuple(value["shape"]):
                    self._interpreter.resize_tensor_input(value["index"], shape)
            self._interpreter.allocate_tensors()
            self._inputs = self._interpreter.get_input_details()
            self._outputs = self._interpreter.get_output_details()
            images = [random_images(value["shape"]) for value in self._inputs]
            self._bind(images)
        except MeasurementError:
            raise
        except (ValueError, RuntimeError) as error:
            raise MeasurementError(f"litert cannot load {path.name}: {_first_line(error)}") from error
        if profile_nodes:
            self._profiler = NodeProfiler(path, target, images, self._interpreter)

    def run(self) -> None:
        if self._profiler is not None:
            self._profiler.run()
        else:
            self._invoke()

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        shapes = [tuple(map(int, value["shape"])) for value in self._inputs]
        if len(inputs) != len(shapes):
            raise MeasurementError(f"{self._name} takes {len(shapes)} inputs, got {len(inputs)}")
        laid_out = [self._channels_last(array, shape) for array, shape in zip(inputs, shapes)]
        turned = any(ours is not theirs for ours, theirs in zip(laid_out, inputs))
        self._bind(laid_out)
        self._invoke()
        outputs = [np.asarray(self._interpreter.get_tensor(value["index"]), np.float32) for value in self._outputs]
        return [array.transpose(0, 3, 1, 2) if turned and array.ndim == 4 else array for array in outputs]

    def close(self) -> NodeProfile | None:
        # What the interpreter was given and gave are copies, so nothing keeps it alive.
        del self._interpreter
        return None if self._profiler is None else self._profiler.close()

    def _channels_last(self, array: Array, shape: tuple[int, ...]) -> Array:
        if array.ndim == 4 and array.transpose(0, 2, 3, 1).shape == shape:
            return array.transpose(0, 2, 3, 1)
        if array.shape != shape:
            raise MeasurementError(f"{self._name} takes an input of the shape {shape}, got {array.shape}")
        return array

    def _bind(self, inputs: Sequence[Array]) -> None:
        for value, array in zip(self._inputs, inputs):
            self._interpreter.set_tensor(value["index"], np.ascontiguousarray(array, np.float32))

    def _invoke(self) -> None:
        try:
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise MeasurementError(f"litert cannot run {self._name}: {_first_line(error)}") from error


def _bound_shape(value: Any, target: Target) -> tuple[int, ...]:
    """The shape of an input; a dynamic first axis is the batch, any other dynamic axis cannot be guessed."""
    name, signature = value["name"], [int(extent) for extent in value["shape_signature"]]
    shape = tuple(target.batch if axis == 0 and extent < 0 else extent for axis, extent in enumerate(signature))
    if value["dtype"] is not np.float32 or not shape or min(shape) < 1:
        raise MeasurementError(
            f"input {name} of shape {signature}, type {np.dtype(value['dtype'])}: inputs must be float32, and only the "
            "batch may be dynamic"
        )
    if shape[0] != target.batch:
        raise MeasurementError(f"input {name} has batch {shape[0]}, the target has batch {target.batch}")
    return shape


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
