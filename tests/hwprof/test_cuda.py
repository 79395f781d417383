"""The GPU through its driver: on a stand-in for the driver with exact times, and against the header of the real one."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path

import pytest
from fake_gpu import install_driver

from hwprof import cuda
from hwprof.cuda import Buffer, Gpu
from hwprof.errors import AcceleratorError, MeasurementError


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    library = ctypes.CDLL(str(install_driver(tmp_path, monkeypatch)))
    library.fake_work.argtypes = library.fake_idle.argtypes = [ctypes.c_double]
    return library


def test_facts(driver: ctypes.CDLL) -> None:
    assert Gpu().versions() == {"accelerator": "Fake GPU, compute capability 8.6", "driver": "CUDA 12.4"}


def test_only_work_within_timed_counts(driver: ctypes.CDLL) -> None:
    gpu = Gpu()
    driver.fake_idle(7.0)
    begin = gpu.busy_ns()
    gpu.timed(lambda: driver.fake_work(0.25))
    driver.fake_idle(5.0)
    assert gpu.busy_ns() - begin == 250_000


def test_a_short_run_is_seen_after_hours(driver: ctypes.CDLL) -> None:
    """A float32 sum of milliseconds would have steps of 1 ms after 3 hours."""
    gpu = Gpu()
    for _ in range(3):
        gpu.timed(lambda: driver.fake_work(3_600_000.0))
    begin = gpu.busy_ns()
    gpu.timed(lambda: driver.fake_idle(0.0078125))
    # A time of day in double precision, subtracted: to 10 ns.
    assert gpu.busy_ns() - begin == pytest.approx(7812, abs=10)


def test_a_graph_takes_what_was_captured_every_time(driver: ctypes.CDLL) -> None:
    gpu = Gpu()
    graph = gpu.capture(lambda: driver.fake_work(0.5))
    assert graph is not None
    assert gpu.busy_ns() == 0
    for _ in range(3):
        gpu.timed(graph.launch)
    assert gpu.busy_ns() == 1_500_000
    graph.close()
    graph.close()
    assert driver.fake_live_graphs() == 0


def refuse() -> None:
    raise MeasurementError("this cannot be captured")


def test_what_cannot_be_captured_is_no_error(driver: ctypes.CDLL) -> None:
    gpu = Gpu()
    assert gpu.capture(refuse) is None
    driver.fake_fail(b"cuGraphInstantiateWithFlags", 1)
    assert gpu.capture(lambda: None) is None
    driver.fake_break_capture()
    assert gpu.capture(lambda: None) is None
    assert driver.fake_live_graphs() == 0
    assert driver.fake_calls(b"cuStreamEndCapture") == 3  # a stream that is left capturing refuses all other work


def test_a_defect_in_a_capture_ends_the_capture_too(driver: ctypes.CDLL) -> None:
    with pytest.raises(ZeroDivisionError):
        Gpu().capture(lambda: 1 / 0)
    assert driver.fake_calls(b"cuStreamEndCapture") == 1


def test_memory_keeps_what_is_written(driver: ctypes.CDLL) -> None:
    buffer = Buffer(Gpu(), 5)
    assert buffer.read() == bytes(5)
    buffer.write(b"hello")
    assert buffer.read() == b"hello"
    with pytest.raises(MeasurementError, match="4 bytes do not fit a buffer of 5"):
        buffer.write(b"four")
    buffer.close()
    buffer.close()
    assert driver.fake_live_buffers() == 0


def test_an_error_says_where_and_what(driver: ctypes.CDLL) -> None:
    gpu = Gpu()
    driver.fake_fail(b"cuMemAlloc_v2", 2)
    with pytest.raises(MeasurementError, match=r"cuMemAlloc_v2: out of memory \(2\)"):
        Buffer(gpu, 1 << 40)


def test_a_driver_that_does_not_start(driver: ctypes.CDLL) -> None:
    driver.fake_fail(b"cuInit", 999)
    with pytest.raises(AcceleratorError, match=r"fake error \(999\).*nvidia-smi"):
        Gpu()


def test_no_gpu(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NO_GPU", "1")
    with pytest.raises(AcceleratorError, match="no GPU"):
        Gpu()


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(AcceleratorError, match="--gpus all"):
        Gpu()


@pytest.mark.gpu
def test_a_real_gpu_computes_on_our_stream_and_memory() -> None:
    """With torch as the library that works on them: what is written is read, captured, replayed, and takes its time."""
    import torch

    gpu = Gpu()
    assert gpu.name == torch.cuda.get_device_name()
    stream = torch.cuda.ExternalStream(gpu.stream)
    left = torch.randn(4096, 4096, device="cuda")
    product = torch.empty_like(left)

    def multiply() -> None:
        with torch.cuda.stream(stream):
            torch.mm(left, left, out=product)

    for _ in range(3):
        multiply()
    gpu.synchronise()
    graph = gpu.capture(multiply)
    assert graph is not None
    for work in (multiply, graph.launch):
        product.zero_()
        torch.cuda.synchronize()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        begin = gpu.busy_ns()
        events[0].record(stream)
        gpu.timed(work)
        events[1].record(stream)
        events[1].synchronize()
        assert torch.allclose(product, left @ left, rtol=1e-3, atol=1e-2)
        # Ours is within theirs, and 0.14 TFLOP take a tenth of a millisecond on any GPU.
        assert 0.1e6 < gpu.busy_ns() - begin <= events[0].elapsed_time(events[1]) * 1e6 + 1e3
    graph.close()
    data = bytes(range(256))
    buffer = Buffer(gpu, len(data))
    buffer.write(data)
    assert buffer.read() == data
    buffer.close()


def header() -> Path | None:
    """cuda.h as packages that torch brings have it."""
    for package, path in (("triton", "backends/nvidia/include/cuda.h"), ("nvidia", "cu13/include/cuda.h")):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            if (Path(root) / path).is_file():
                return Path(root) / path
    return None


# How C passes a type, by its name there and in ctypes.
C_KINDS = {
    "unsigned int": "u",
    "unsigned long long": "U",
    "CUdeviceptr": "U",
    "size_t": "U",  # on all machines with such a driver
    **dict.fromkeys(("int", "CUdevice", "CUresult", "CUdevice_attribute", "CUstreamCaptureMode"), "i"),
    **dict.fromkeys(("CUcontext", "CUstream", "CUevent", "CUgraph", "CUgraphExec"), "p"),
}
CTYPES_KINDS = {
    ctypes.c_uint: "u",
    ctypes.c_ulonglong: "U",
    ctypes.c_uint64: "U",
    ctypes.c_size_t: "U",
    ctypes.c_int: "i",
}


def c_kind(parameter: str) -> str:
    return "p" if "*" in parameter else C_KINDS[re.sub(r"\s*\w+$", "", parameter)]


@pytest.mark.parametrize("function", cuda.PROTOTYPES)
def test_functions_are_called_as_the_driver_declares_them(function: str) -> None:
    path = header()
    if path is None:
        pytest.skip("no cuda.h here; the packages triton and nvidia-cuda-runtime have it, which torch for CUDA brings")
    text = re.sub(r"/\*.*?\*/", "", path.read_text(errors="replace"), flags=re.DOTALL)
    # The header declares the plain name, and renames it to the version of the function that is current.
    renamed = re.search(rf"#define\s+(\w+)\s+(?:__\w+\()?{function}\)?\s*$", text, flags=re.MULTILINE)
    name = renamed.group(1) if renamed else function
    declared = re.search(rf"CUresult CUDAAPI {name}\(([^)]*)\);", text)
    assert declared is not None
    parameters = [part.strip() for part in declared.group(1).split(",") if part.strip() not in ("", "void")]
    passed = [CTYPES_KINDS.get(argument, "p") for argument in cuda.PROTOTYPES[function]]
    assert passed == [c_kind(parameter) for parameter in parameters]
