"""The runtime torch-cuda, with a GPU of the test's own: everything but CUDA itself, which no test here can stand for.

The stand-in keeps what CUDA promises and code gets wrong: a graph replays on the very tensors that it was captured
with and writes its output to the very same place, nothing is computed while it is captured, and an event's time is
known only after it was waited for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch_graphs import small_graph, write_small

from hwprof.errors import DeviceError, MeasurementError
from hwprof.runtimes import torch_eager
from hwprof.runtimes.torch_cuda import WARMUP_RUNS, EventClock, TorchCuda
from hwprof.runtimes.torch_eager import TorchCpu
from hwprof.target import Plan, Target
from hwprof.timing import time_group

TARGET = Target(runtime="torch-cuda")
# where torch is told not to use TensorFloat-32, and what it is told
TENSOR_FLOAT = [(torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")]
OFF: object = False
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    TENSOR_FLOAT = [(torch.backends.cuda.matmul, "fp32_precision"), (torch.backends.cudnn.conv, "fp32_precision")]
    OFF = "ieee"


class Gpu:
    """What happened, in order, and the time on the GPU's clock in ms."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now_ms = 0.0
        self.run_ms = 0.25
        self.capturing = False

    def work(self) -> None:
        self.now_ms += self.run_ms


class Recorder(TorchDispatchMode):
    """Keeps every operator that is called, with its arguments and its output."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, output))
        return output


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    gpu = Gpu()

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            assert enable_timing
            self.at: float | None = None
            self.known = False

        def record(self) -> None:
            gpu.log.append("event")
            self.at, self.known = gpu.now_ms, False

        def synchronize(self) -> None:
            gpu.log.append("wait")
            self.known = True

        def elapsed_time(self, end: Event) -> float:
            assert end.known
            assert self.at is not None
            assert end.at is not None
            return float(np.float32(end.at - self.at))

    class Stream:
        def wait_stream(self, other: object) -> None:
            gpu.log.append("streams meet")

    class CUDAGraph:
        recorder: Recorder

        def replay(self) -> None:
            gpu.log.append("replay")
            gpu.work()
            for function, args, kwargs, output in self.recorder.calls:
                computed = function(*args, **kwargs)
                if computed.data_ptr() != output.data_ptr():
                    output.copy_(computed)

    @contextlib.contextmanager
    def capture(graph: CUDAGraph):
        gpu.log.append("capture")
        graph.recorder = Recorder()
        with graph.recorder:
            yield
        graph.recorder.calls[-1][-1].fill_(-1)  # a captured operator has not computed anything yet
        gpu.log.append("captured")

    @contextlib.contextmanager
    def beside(stream: Stream):
        gpu.log.append("beside")
        yield
        gpu.log.append("back")

    default = Stream()
    for name, value in {
        "is_available": lambda: True,
        "Event": Event,
        "Stream": Stream,
        "current_stream": lambda: default,
        "stream": beside,
        "CUDAGraph": CUDAGraph,
        "graph": capture,
        "synchronize": lambda: gpu.log.append("wait for all"),
        "device_count": lambda: 1,
        "get_device_name": lambda: "NVIDIA Example 9",
        "get_device_capability": lambda *_: (9, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(TorchCuda, "_device", "cpu")
    # put back what loading a model sets
    switches = [(torch.backends.cudnn, "benchmark"), *TENSOR_FLOAT]
    before = [getattr(owner, name) for owner, name in switches]
    yield gpu
    for (owner, name), value in zip(switches, before, strict=True):
        setattr(owner, name, value)


def load(path: Path, target: Target = TARGET, runtime: TorchCuda | None = None):
    return (runtime or TorchCuda()).load(path, target, profile_nodes=False)


def images(seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 6, 6)).astype(np.float32)


def test_warmed_up_captured_once_and_replayed(gpu, tmp_path):
    model = load(write_small(tmp_path / "net"))
    beginning = ["streams meet", "beside", "back", "streams meet", "capture", "captured"]
    assert gpu.log == beginning
    for _ in range(2):
        model.run()
    assert gpu.log == beginning + ["event", "replay", "event", "wait"] * 2


def test_kernels_are_warmed_up_where_they_are_captured(gpu, tmp_path, monkeypatch):
    calls: list[str] = []
    path = write_small(tmp_path / "net")
    hardswish = torch.nn.functional.hardswish

    def spy(x):
        calls.append(gpu.log[-1] if gpu.log else "")
        return hardswish(x)

    monkeypatch.setitem(torch_eager._SIMPLE, "hardswish", spy)
    load(path)
    # on the meta device and once on the GPU as a trial; then beside the default stream; then captured
    assert calls == [""] * 2 + ["beside"] * WARMUP_RUNS + ["capture"]


def test_basic_launches_without_a_graph(gpu, tmp_path):
    model = load(write_small(tmp_path / "net"), Target(optimisation="basic"))
    assert gpu.log == ["wait for all"]
    model.run()
    assert gpu.log == ["wait for all", "event", "event", "wait"]


@pytest.mark.parametrize("optimisation", ["all", "basic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_replay_computes_what_the_cpu_computes_of_any_input(gpu, tmp_path, precision, optimisation):
    path, target = write_small(tmp_path / "net", 2), Target(batch=2, precision=precision, optimisation=optimisation)
    model, cpu = load(path, target), TorchCpu().load(path, target, profile_nodes=False)
    model.run()
    for seed in (1, 2):
        (found,), (expected,) = model.infer([images(seed, 2)]), cpu.infer([images(seed, 2)])
        assert np.array_equal(found, expected)
        kept = found.copy()
        model.run()
        assert np.array_equal(found, kept)  # an answer is no view of what the next run overwrites


def test_two_models_share_the_clock_and_nothing_else(gpu, tmp_path):
    runtime = TorchCuda()
    one, two = (load(write_small(tmp_path / name), TARGET, runtime) for name in ("one", "two"))
    (first,) = one.infer([images(1)])
    two.infer([images(2)])
    assert np.array_equal(one.infer([images(1)])[0], first)
    clock = runtime.clock(TARGET)
    assert clock.cpu is None
    before = clock.wall()
    one.run()
    gpu.run_ms = 0.5
    two.run()
    assert clock.wall() - before == 750_000


def test_only_what_is_between_the_events_counts(gpu):
    clock = EventClock()
    gpu.now_ms = 1e6  # waiting for the host
    output = clock.timed(lambda: gpu.work() or torch.ones(1))
    gpu.now_ms += 5000
    assert float(output) == 1
    assert clock.wall() == 250_000


def test_hours_do_not_make_the_clock_coarse(gpu):
    """A float32 of milliseconds moves in steps of 0.25 ms after an hour: a run of 10 us would take 0 or 250 us."""
    clock = EventClock()
    gpu.run_ms = 3_600_000.0
    for _ in range(10):
        clock.timed(gpu.work)
    after_hours = clock.wall()
    gpu.run_ms = 0.010
    gpu.now_ms = 0.0
    for _ in range(1000):
        clock.timed(gpu.work)
    assert clock.wall() - after_hours == pytest.approx(10_000_000, abs=1000)


def test_a_group_is_timed_on_the_gpus_clock(gpu, tmp_path):
    runtime = TorchCuda()
    model, anchor = (load(write_small(tmp_path / name), TARGET, runtime) for name in ("model", "anchor"))

    class Slow:
        def run(self) -> None:
            gpu.run_ms = 0.6
            model.run()
            gpu.run_ms = 0.2

    gpu.run_ms = 0.2
    group = time_group({"slow": Slow()}, {"anchor": anchor}, Plan(sweeps=3, max_sweeps=3), clock=runtime.clock(TARGET))
    timing = group.timing("slow", Plan())
    assert (timing.ratio, timing.wall_ms) == pytest.approx((3, 0.6), rel=1e-4)
    assert group.anchor_ms == pytest.approx([0.2] * 3, rel=1e-4)


def test_versions_name_the_gpu(gpu):
    versions = TorchCuda().versions()
    assert versions["accelerator"] == "NVIDIA Example 9, compute capability 9.0"
    assert {"torch", "cuda", "cudnn"} < set(versions)


def test_tensor_float_is_off_and_cudnn_searches(gpu, tmp_path):
    load(write_small(tmp_path / "net"))
    assert torch.backends.cudnn.benchmark
    assert [getattr(owner, name) for owner, name in TENSOR_FLOAT] == [OFF, OFF]


@pytest.mark.parametrize("place", ["graph", "replay"])
def test_what_cuda_refuses_is_an_error_of_the_model(gpu, tmp_path, monkeypatch, place):
    def refuse(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    path = write_small(tmp_path / "net")
    monkeypatch.setattr(*((torch.cuda, "graph") if place == "graph" else (torch.cuda.CUDAGraph, "replay")), refuse)
    with pytest.raises(MeasurementError, match=r"torch(-cuda)? cannot (load|run) net: CUDA out of memory"):
        load(path).run()


@pytest.mark.parametrize(
    ("cuda", "visible", "message"),
    [
        (None, None, "is a build without CUDA; install one with it"),
        ("13.2", None, r"finds no NVIDIA GPU here: see whether nvidia-smi lists one; the runtime torch"),
        ("13.2", "7", "what CUDA_VISIBLE_DEVICES=7 leaves of them"),
    ],
)
def test_no_gpu_is_an_error_with_the_next_step(gpu, monkeypatch, cuda, visible, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(DeviceError, match=message):
        TorchCuda().versions()


@pytest.mark.gpu
@pytest.mark.parametrize("optimisation", ["all", "basic"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 1e-2), ("bf16", 5e-2)])
def test_a_real_gpu_computes_what_the_cpu_computes(tmp_path, precision, tolerance, optimisation):
    path, runtime = write_small(tmp_path / "net", 2), TorchCuda()
    target = Target(runtime="torch-cuda", batch=2, precision=precision, optimisation=optimisation)
    model, clock = load(path, target, runtime), runtime.clock(target)
    cpu = TorchCpu().load(path, Target(batch=2), profile_nodes=False)
    before = clock.wall()
    for seed in (1, 2):
        (found,), (expected,) = model.infer([images(seed, 2)]), cpu.infer([images(seed, 2)])
        assert found.shape == expected.shape == (2, small_graph(2).shapes["b1:f"][1])
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert 0 < clock.wall() - before < 1e9
