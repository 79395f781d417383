"""An NVIDIA GPU through its driver's own library: memory, one stream, graphs, and time by events.

Nothing but the driver is needed. TensorRT, ONNX Runtime and torch work in the same (primary) context of the GPU, so
addresses and the stream can be handed to them. The first visible GPU is used; CUDA_VISIBLE_DEVICES chooses another.

A run's time is what passes on the GPU between two events on the stream, one before the launch and one after the last
kernel, as NVIDIA's trtexec measures it. No transfer is inside, nor the wait of the CPU for the end; the launch is, and
a graph makes it a single short one.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from hwprof.errors import AcceleratorError, MeasurementError

# The functions used, with the types of their arguments; a test compares them with the header of the driver.
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
}
LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: work on the default stream of somebody else does not wait for ours
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate while a graph is captured


class Gpu:
    """The first visible GPU with a stream of its own. Raises AcceleratorError where there is no GPU, or no driver."""

    def __init__(self) -> None:
        self._library = _load()
        code = self._library.cuInit(0)
        if code:
            raise AcceleratorError(f"the GPU cannot be used: {self._text(code)}; see what nvidia-smi says")
        count = self._get("cuDeviceGetCount", c_int)
        if count < 1:
            raise AcceleratorError("the driver sees no GPU; see what nvidia-smi says, and CUDA_VISIBLE_DEVICES")
        device = self._get("cuDeviceGet", c_int, 0)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode(errors="replace")
        major, minor = (
            self._get("cuDeviceGetAttribute", c_int, attribute, device)
            for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR)
        )
        self.capability = f"{major}.{minor}"
        self.cuda = self._get("cuDriverGetVersion", c_int)
        self._call("cuCtxSetCurrent", self._get("cuDevicePrimaryCtxRetain", c_void_p, device))
        self.stream: int = self._get("cuStreamCreate", c_void_p, NON_BLOCKING)
        self._begin, self._end = (self._get("cuEventCreate", c_void_p, 0) for _ in range(2))
        self._busy_ms = 0.0

    def versions(self) -> dict[str, str]:
        """What of the GPU changes latency; part of a table's fingerprint."""
        return {
            "accelerator": f"{self.name}, compute capability {self.capability}",
            "driver": f"CUDA {self.cuda // 1000}.{self.cuda % 1000 // 10}",  # its own version is in hwprof.gpu
        }

    def busy_ns(self) -> int:
        """The clock of GPU runs: nanoseconds that the GPU took for all `timed` work so far."""
        return round(self._busy_ms * 1e6)

    def timed(self, work: Callable[[], object]) -> None:
        """Let `work` put work on the stream, wait for its end, and add what it took on the GPU to the clock."""
        self._call("cuEventRecord", self._begin, self.stream)
        work()
        self._call("cuEventRecord", self._end, self.stream)
        self._call("cuEventSynchronize", self._end)
        # One run at a time: in float32, a sum of milliseconds would lose what a short run takes.
        self._busy_ms += self._get("cuEventElapsedTime", c_float, self._begin, self._end)

    def capture(self, work: Callable[[], object]) -> Graph | None:
        """What `work` puts on the stream, as one graph; None if a part of it cannot be captured."""
        self._call("cuStreamBeginCapture_v2", self.stream, THREAD_LOCAL)
        graph = c_void_p()
        try:
            work()
            captured = True
        except MeasurementError:
            captured = False
        finally:
            code = self._library.cuStreamEndCapture(self.stream, byref(graph))
        if code or not graph.value:
            return None
        try:
            return Graph(self, self._get("cuGraphInstantiateWithFlags", c_void_p, graph, 0)) if captured else None
        except MeasurementError:
            return None
        finally:
            self._library.cuGraphDestroy(graph)

    def synchronise(self) -> None:
        """Wait until everything that was put on the GPU has happened."""
        self._call("cuCtxSynchronize")

    def _get(self, name: str, kind: Any, *arguments: Any) -> Any:
        """What a function writes to its first argument."""
        value = kind()
        self._call(name, byref(value), *arguments)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise MeasurementError(f"the GPU failed in {name}: {self._text(code)}")

    def _text(self, code: int) -> str:
        text = c_char_p()
        self._library.cuGetErrorString(code, byref(text))
        return f"{(text.value or b'unknown error').decode(errors='replace')} ({code})"


class Graph:
    """Captured work, launched as one."""

    def __init__(self, gpu: Gpu, handle: int) -> None:
        self._gpu, self._handle = gpu, handle

    def launch(self) -> None:
        self._gpu._call("cuGraphLaunch", self._handle, self._gpu.stream)

    def close(self) -> None:
        if self._handle:
            self._gpu._call("cuGraphExecDestroy", self._handle)
        self._handle = 0


class Buffer:
    """Memory of the GPU, `size` bytes at `address`."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu, self.size = gpu, size
        self.address: int = gpu._get("cuMemAlloc_v2", c_uint64, max(size, 1))

    def write(self, data: bytes) -> None:
        """Bring `size` bytes to the GPU, and wait until they are there."""
        if len(data) != self.size:
            raise MeasurementError(f"{len(data)} bytes do not fit a buffer of {self.size}")
        self._gpu._call("cuMemcpyHtoD_v2", self.address, data, self.size)
        # Our stream does not wait for the default stream, on which the last part of a copy may be under way.
        self._gpu.synchronise()

    def read(self) -> bytes:
        """Everything in the buffer, once all work is done."""
        data = ctypes.create_string_buffer(max(self.size, 1))
        self._gpu.synchronise()
        self._gpu._call("cuMemcpyDtoH_v2", data, self.address, self.size)
        return data.raw[: self.size]

    def close(self) -> None:
        if self.address:
            self._gpu._call("cuMemFree_v2", self.address)
        self.address = 0


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
        for function, arguments in PROTOTYPES.items():
            getattr(library, function).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise AcceleratorError(
            f"no NVIDIA driver that can be used is here ({error}); install it (CUDA 11.4 or later), or start the "
            "container with --gpus all"
        ) from error
    return library
