"""PyTorch itself, operator by operator, without gradients: on the CPU here, on NVIDIA's GPUs in `torch_cuda.py`.

Files are those of `torch_file.py`, so no class has to be imported and nothing is unpickled. A network reads and gives
float32; a lower precision is cast to behind its inputs and back before its output, within what is timed, as it has to
be where it is deployed. Optimisation "all" keeps tensors in the memory format channels_last; "basic" is what
`module(images)` does unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hwprof.errors import MeasurementError, TargetError
from hwprof.runtimes import NodeProfile
from hwprof.runtimes.arrays import Array, random_images
from hwprof.runtimes.torch_file import GraphFile, Step, read_graph_file
from hwprof.target import Target
from hwprof.timing import Clock

LEVELS = ("all", "basic")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchCpu:
    """Eager PyTorch on the CPU."""

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def clock(self, target: Target) -> Clock:
        # With several threads the process's CPU time is the sum of theirs, not the time of an inference.
        return Clock() if target.threads == 1 else Clock(cpu=None)

    def load(self, path: Path, target: Target, *, profile_nodes: bool) -> EagerModel:
        torch.set_num_threads(target.threads)
        program, inputs = load_program(path, target, "cpu")
        return EagerModel(path.name, inputs, partial(program, inputs))


class Program:
    """The operators of a graph as functions of torch, with their weights on the device."""

    def __init__(self, graph: GraphFile, device: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
        def placed(array: Array) -> Tensor:
            weight = torch.tensor(array, dtype=dtype, device=device)
            return weight.contiguous(memory_format=layout) if weight.dim() == 4 else weight

        self._inputs, self._output, self._dtype = graph.inputs, graph.output, dtype
        last = {source: place for place, step in enumerate(graph.steps) for source in step.inputs}
        self._steps = [
            (
                operator(step, {name: placed(array) for name, array in step.weights.items()}),
                step.inputs,
                step.output,
                tuple(source for source in {*step.inputs} - {graph.output} if last[source] == place),
            )
            for place, step in enumerate(graph.steps)
        ]

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """float32 inputs -> the float32 output; tensors are freed when nothing reads them any more."""
        values = {name: tensor.to(self._dtype) for name, tensor in zip(self._inputs, inputs)}
        for function, sources, output, spent in self._steps:
            values[output] = function(*[values[source] for source in sources])
            for name in spent:
                del values[name]
        return values[self._output].float()


def operator(step: Step, weights: Mapping[str, Tensor]) -> Callable[..., Tensor]:
    """The function of torch that computes a step from its inputs."""
    attributes: Mapping[str, Any] = step.attributes
    if step.kind == "conv":
        return partial(functional.conv2d, weight=weights["weight"], bias=weights.get("bias"), **attributes)
    if step.kind == "linear":
        return partial(functional.linear, weight=weights["weight"], bias=weights.get("bias"))
    if step.kind == "batch_norm":
        scale, shift = weights["scale"], weights["shift"]
        mean, variance = torch.zeros_like(scale), torch.ones_like(scale)
        return partial(
            functional.batch_norm, running_mean=mean, running_var=variance, weight=scale, bias=shift, eps=0.0
        )
    if step.kind in ("avg_pool", "max_pool"):
        pool = functional.avg_pool2d if step.kind == "avg_pool" else functional.max_pool2d
        others = {name: value for name, value in attributes.items() if name != "kernel"}
        return partial(pool, kernel_size=attributes["kernel"], **others)
    return _SIMPLE[step.kind]


_SIMPLE: dict[str, Callable[..., Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "add": torch.add,
    "mul": torch.mul,
    "concat": lambda *tensors: torch.cat(tensors, dim=1),
    "global_avg_pool": partial(functional.adaptive_avg_pool2d, output_size=1),
    "flatten": partial(torch.flatten, start_dim=1),
}


def load_program(path: Path, target: Target, device: str) -> tuple[Program, list[Tensor]]:
    """A file's program, and inputs of random numbers, on a device ("cpu" or "cuda").

    Raises TargetError on an optimisation level that there is not, MeasurementError on a file that cannot be run.
    """
    if target.optimisation not in LEVELS:
        raise TargetError(
            f"{target.runtime} has no optimisation level {target.optimisation!r}; it has {', '.join(LEVELS)}"
        )
    layout = torch.channels_last if target.optimisation == "all" else torch.contiguous_format
    graph = read_graph_file(path)
    for name in graph.inputs:
        if graph.shapes[name][0] != target.batch:
            raise MeasurementError(
                f"input {name} of {path.name} has batch {graph.shapes[name][0]}, the target has batch {target.batch}"
            )
    try:
        with torch.inference_mode():
            _check_shapes(graph)
            inputs = [torch.from_numpy(random_images(graph.shapes[name])).to(device) for name in graph.inputs]
            inputs = [images.contiguous(memory_format=layout) if images.dim() == 4 else images for images in inputs]
            program = Program(graph, device, DTYPES[target.precision], layout)
            program(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise MeasurementError(f"torch cannot load {path.name}: {error}") from error
    return program, inputs


def _check_shapes(graph: GraphFile) -> None:
    """Run the graph on the meta device: nothing is computed or allocated before every shape is known to be true."""
    values = {name: torch.empty(graph.shapes[name], device="meta") for name in graph.inputs}
    for step in graph.steps:
        weights = {name: torch.empty(array.shape, device="meta") for name, array in step.weights.items()}
        value = operator(step, weights)(*[values[source] for source in step.inputs])
        if tuple(value.shape) != graph.shapes[step.output]:
            raise ValueError(f"{step.output} has the shape {tuple(value.shape)}, not {graph.shapes[step.output]}")
        values[step.output] = value


class EagerModel:
    """A network with its inputs bound; `launch` computes the output of what they hold, and returns when it is there."""

    def __init__(self, name: str, inputs: Sequence[Tensor], launch: Callable[[], Tensor]) -> None:
        self._name, self._inputs, self._launch = name, inputs, launch

    @torch.inference_mode()
    def run(self) -> None:
        try:
            self._launch()
        except RuntimeError as error:
            raise MeasurementError(f"torch cannot run {self._name}: {error}") from error

    @torch.inference_mode()
    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        shapes, wanted = [array.shape for array in inputs], [tuple(tensor.shape) for tensor in self._inputs]
        if shapes != wanted:
            raise MeasurementError(f"{self._name} takes inputs of the shapes {wanted}, got {shapes}")
        try:
            for tensor, array in zip(self._inputs, inputs):
                tensor.copy_(torch.from_numpy(np.ascontiguousarray(array, np.float32)))
            return [self._launch().cpu().contiguous().numpy().copy()]
        except RuntimeError as error:
            raise MeasurementError(f"torch cannot run {self._name}: {error}") from error

    def close(self) -> NodeProfile | None:
        del self._launch, self._inputs  # and with them the memory of the device
        return None
