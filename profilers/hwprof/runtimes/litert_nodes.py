"""Node times of LiteRT, through the C interface of the library in its package: its Python interface gives none.

A compiled model of the same file runs with the library's profiler on, which tells how long every kernel of XNNPACK, and
every operator outside of it, took in its place in the network. XNNPACK names kernels by kind only, in the order of the
operators that they come from; `attributed` gives them back to these. Times are whole microseconds, cut off, so half of
one is added to each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import ai_edge_litert
import numpy as np

from hwprof.errors import MeasurementError
from hwprof.runtimes import NodeProfile
from hwprof.runtimes.arrays import Array
from hwprof.runtimes.litert_kernels import attributed, operators
from hwprof.target import Target

_CPU = 1
_WRITE = 1
_TENSOR_TYPE_BYTES = 1024  # more than the library's description of a tensor's type takes
_KERNEL_MODES = {"all": "xnnpack", "basic": "builtin"}
_CUT_OFF_US = 0.5

# One event as the library's C++ header lays it out, on machines of 64 bits.
_EVENT = np.dtype(
    [
        ("tag", "u8"),
        ("kind", "u8"),
        ("start", "u8"),
        ("us", "u8"),
        ("memory", "u8", 6),
        ("number", "u8"),
        ("_", "u8", 2),
    ]
)
_INVOKE, _OPERATOR, _KERNEL = 1, 2, 8
_KINDS = [1 << bit for bit in range(9)]
_OLDEST = (2, 2)  # older libraries have other arguments and events
_UPGRADE = f"node times need ai-edge-litert {_OLDEST[0]}.{_OLDEST[1]} or later; pip install --upgrade ai-edge-litert"


# How the library frees the text of an option: not at all, Python owns it.
_KEEP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)


class NodeProfiler:
    """A compiled model with the library's profiler on."""

    def __init__(self, path: Path, target: Target, images: Sequence[Array], interpreter: Any) -> None:
        """`images` are the model's inputs; `interpreter` holds the same file, and knows its operators by name."""
        self._name = path.name
        if any(min(value["shape_signature"]) < 0 for value in interpreter.get_input_details()):
            raise MeasurementError(
                f"{path.name}: nodes are profiled of files with fixed shapes only; fix the batch in it"
            )
        self._operators, self._delegated = operators(interpreter)
        self._library = _Library(path.name)
        self._stack = ExitStack()
        try:
            self._compile(path, target, images)
        except BaseException:
            self._stack.close()
            raise

    def run(self) -> None:
        """One synchronous inference."""
        self._library("LiteRtRunCompiledModel", *self._arguments)

    def close(self) -> NodeProfile:
        """Free the model; the times of all its runs. Raises MeasurementError where they cannot be understood."""
        try:
            return self._profile()
        finally:
            self._stack.close()

    def _compile(self, path: Path, target: Target, images: Sequence[Array]) -> None:
        environment = self._made("LiteRtCreateEnvironment", "LiteRtDestroyEnvironment", 0, None)
        model = self._made("LiteRtCreateModelFromFile", "LiteRtDestroyModel", environment, str(path).encode())
        options = self._made("LiteRtCreateOptions", "LiteRtDestroyOptions")
        self._library("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        level = f'num_threads = {target.threads}\nkernel_mode = "{_KERNEL_MODES[target.optimisation]}"\n'
        self._texts = {b"xnnpack": level.encode(), b"runtime_options_string": b"enable_profiling = true\n"}
        for name, text in self._texts.items():
            option = self._library.made("LiteRtCreateOpaqueOptions", name, text, _KEEP)
            self._library("LiteRtAddOpaqueOptions", options, option)  # which owns it from now on
        compiled = self._made("LiteRtCreateCompiledModel", "LiteRtDestroyCompiledModel", environment, model, options)
        subgraph = self._library.made("LiteRtGetModelSubgraph", model, _size(0))
        inputs, outputs = (self._buffers(side, environment, compiled, subgraph) for side in ("Input", "Output"))
        for buffer, image in zip(inputs, images):
            self._fill(buffer, image)
        self._arguments = compiled, _size(0), _size(len(inputs)), inputs, _size(len(outputs)), outputs
        self._profiler = self._library.made("LiteRtCompiledModelGetProfiler", compiled)
        self._library("LiteRtStartProfiler", self._profiler)

    def _made(self, name: str, destroy: str, *arguments: Any) -> ctypes.c_void_p:
        handle = self._library.made(name, *arguments)
        self._stack.callback(self._library.free, destroy, handle)
        return handle

    def _buffers(self, side: str, environment: Any, compiled: Any, subgraph: Any) -> ctypes.Array[ctypes.c_void_p]:
        """Buffers for all inputs, or outputs, of the types and sizes that the model asks for."""
        count = ctypes.c_size_t()
        self._library(f"LiteRtGetNumSubgraph{side}s", subgraph, ctypes.byref(count))
        buffers = (ctypes.c_void_p * count.value)()
        for number in range(count.value):
            tensor = self._library.made(f"LiteRtGetSubgraph{side}", subgraph, _size(number))
            kind = ctypes.create_string_buffer(_TENSOR_TYPE_BYTES)
            self._library("LiteRtGetRankedTensorType", tensor, kind)
            wanted = self._library.made(
                f"LiteRtGetCompiledModel{side}BufferRequirements", compiled, _size(0), _size(number)
            )
            create = "LiteRtCreateManagedTensorBufferFromRequirements"
            buffers[number] = self._made(create, "LiteRtDestroyTensorBuffer", environment, kind, wanted)
        return buffers

    def _fill(self, buffer: int, image: Array) -> None:
        handle, address, room = ctypes.c_void_p(buffer), ctypes.c_void_p(), ctypes.c_size_t()
        self._library("LiteRtGetTensorBufferSize", handle, ctypes.byref(room))
        if room.value < image.nbytes:
            raise MeasurementError(
                f"{self._name}: nodes are profiled of files with fixed shapes only, write the batch in"
            )
        self._library("LiteRtLockTensorBuffer", handle, ctypes.byref(address), _WRITE)
        ctypes.memmove(address, np.ascontiguousarray(image).ctypes.data, image.nbytes)
        self._library("LiteRtUnlockTensorBuffer", handle)

    def _profile(self) -> NodeProfile:
        runs: list[list[tuple[int, str, int, float]]] = []
        for event in self._events():
            kind, tag = int(event["kind"]), ctypes.string_at(int(event["tag"])).decode(errors="replace")
            if kind == _INVOKE and tag == "Invoke":
                runs.append([])
            elif kind in (_OPERATOR, _KERNEL) and runs:
                runs[-1].append((kind, tag, int(event["number"]), float(event["us"]) + _CUT_OFF_US))
        steps = [[step[:3] for step in run] for run in runs]
        if not steps or not steps[0] or any(run != steps[0] for run in steps):
            raise MeasurementError(f"{self._name}: the profiler's runs do not list the same kernels")
        return NodeProfile(tuple(self._names(steps[0])), tuple(tuple(step[3] for step in run) for run in runs))

    def _names(self, steps: Sequence[tuple[int, str, int]]) -> list[str]:
        """The tensor that each kernel computes, or has a part in, and the kernel."""
        pieces: list[list[str]] = []
        for kind, tag, number in steps:
            if kind == _KERNEL and (number == 0 or not pieces):
                pieces.append([])
            if kind == _KERNEL:
                pieces[-1].append(tag)
        known = all(kind == _KERNEL or number in self._operators for kind, _, number in steps)
        if len(pieces) != len(self._delegated) or not known:
            raise MeasurementError(f"{self._name}: the profiler tells of other parts than the file has")
        owners = chain(*(attributed(piece, took) for piece, took in zip(pieces, self._delegated)))
        return [
            f"{(next(owners) if kind == _KERNEL else self._operators[number]).name} {tag}"
            for kind, tag, number in steps
        ]

    def _events(self) -> Array:
        count = ctypes.c_int()
        self._library("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(count))
        if not count.value:
            raise MeasurementError(f"{self._name}: the profiler saw no run")
        # Room for events that are larger than ours: what lies behind them must still be empty.
        raw = np.zeros(2 * count.value, _EVENT)
        self._library("LiteRtGetProfilerEvents", self._profiler, count, ctypes.c_void_p(raw.ctypes.data))
        events = raw[: count.value]
        if raw[count.value :].view("u1").any() or not np.isin(events["kind"] & 0xFFFFFFFF, _KINDS).all():
            raise MeasurementError(
                f"the events of the profiler in ai-edge-litert {ai_edge_litert.__version__} are laid out in another way"
            )
        events["kind"] &= 0xFFFFFFFF
        return events


class _Library:
    """Calls of the C library, of which every one gives a status."""

    def __init__(self, file: str) -> None:
        self._file = file
        version = ai_edge_litert.__version__
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
            raise MeasurementError(f"ai-edge-litert {version} is installed: {_UPGRADE}")
        folder = Path(ai_edge_litert.__file__).parent
        try:
            self._functions = ctypes.CDLL(str(next(folder.glob("libLiteRt.*"))))
        except (StopIteration, OSError) as error:
            raise MeasurementError(f"there is no library libLiteRt in {folder}: {_UPGRADE}") from error

    def __call__(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._functions, name)
        except AttributeError as error:
            raise MeasurementError(f"the library libLiteRt has no {name}: {_UPGRADE}") from error
        status = function(*arguments)
        if status:
            raise MeasurementError(f"litert cannot profile the nodes of {self._file}: {name} gives the status {status}")

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """The handle that a call gives through its last argument."""
        handle = ctypes.c_void_p()
        self(name, *arguments, ctypes.byref(handle))
        return handle

    def free(self, name: str, handle: ctypes.c_void_p) -> None:
        function = getattr(self._functions, name)
        function.restype = None
        function(handle)


def _size(value: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(value)
