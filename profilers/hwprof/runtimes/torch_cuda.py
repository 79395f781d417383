"""PyTorch on an NVIDIA GPU: for GPUs whose machine has no TensorRT, and to see what TensorRT gains there.

Inputs lie on the GPU; nothing is transferred within what is timed. cuDNN tries its algorithms at loading and keeps the
fastest (`cudnn.benchmark`). Optimisation "all" records the network once as a CUDA graph and replays it, so the CPU does
not have to launch every kernel anew; "basic" launches them one by one. fp32 is IEEE's float32: TensorFloat-32 is off,
for convolutions too, where PyTorch's default is on.

Times are those of the GPU's own clock, from just before the launch to the end of the last kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from hwprof.errors import AcceleratorError, MeasurementError
from hwprof.runtimes.torch_eager import EagerModel, Program, load_program
from hwprof.target import Target
from hwprof.timing import Clock

WARMUP_RUNS = 3  # kernels are chosen and workspaces allocated in the first ones, which must not happen in a capture


class EventClock:
    """Nanoseconds that the GPU took for all runs so far, on its own clock.

    A run lies between two events. Their distance is a float32 of milliseconds, so it is rounded to whole nanoseconds
    before it is added up: the sum does not become coarser with the hours.
    """

    def __init__(self) -> None:
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._total_ns = 0

    def timed(self, launch: Callable[[], Tensor]) -> Tensor:
        """What `launch` puts on the GPU's stream, once it is computed."""
        self._begin.record()
        output = launch()
        self._end.record()
        self._end.synchronize()
        self._total_ns += round(self._begin.elapsed_time(self._end) * 1e6)
        return output

    def wall(self) -> int:
        return self._total_ns


class TorchCuda:
    """Eager PyTorch on the first GPU that it sees (CUDA_VISIBLE_DEVICES chooses)."""

    _device = "cuda"

    def versions(self) -> dict[str, str]:
        _require_gpu()
        major, minor = torch.cuda.get_device_capability()
        return {
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "accelerator": f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}",
        }

    def clock(self, target: Target) -> Clock:
        return Clock(wall=self._events.wall, cpu=None)

    def load(self, path: Path, target: Target, *, profile_nodes: bool) -> EagerModel:
        _require_gpu()
        torch.set_num_threads(target.threads)
        torch.backends.cudnn.benchmark = True
        _switch_tensor_float_off()
        program, inputs = load_program(path, target, self._device)
        try:
            with torch.inference_mode():
                launch = captured(program, inputs) if target.optimisation == "all" else warmed_up(program, inputs)
        except RuntimeError as error:
            raise MeasurementError(f"torch-cuda cannot load {path.name}: {error}") from error
        return EagerModel(path.name, inputs, partial(self._events.timed, launch))

    @cached_property
    def _events(self) -> EventClock:
        return EventClock()


def warmed_up(program: Program, inputs: Sequence[Tensor]) -> Callable[[], Tensor]:
    """What launches a program's kernels one by one."""
    for _ in range(WARMUP_RUNS):
        program(inputs)
    torch.cuda.synchronize()
    return partial(program, inputs)


def captured(program: Program, inputs: Sequence[Tensor]) -> Callable[[], Tensor]:
    """What replays a program on these very inputs, recorded as a CUDA graph; its output is always the same tensor."""
    # CUDA records no work of the default stream, so it is not warmed up there either.
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_RUNS):
            program(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = program(inputs)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _require_gpu() -> None:
    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        raise AcceleratorError(
            f"torch {torch.__version__} is a build without CUDA; install one with it (https://pytorch.org), "
            "or use the runtime torch, which runs on the CPU"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    raise AcceleratorError(
        "torch finds no NVIDIA GPU here: see whether nvidia-smi lists one"
        + (f" and what CUDA_VISIBLE_DEVICES={visible} leaves of them" if visible is not None else "")
        + "; the runtime torch runs on the CPU"
    )


def _switch_tensor_float_off() -> None:
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    else:  # torch before 2.9
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
