"""What exporters begin with: a module's graph for our own writers, its ONNX model, its torch.export program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import onnx
import torch
from torch import Tensor, nn

from hwnas.errors import ExportError
from hwnas.export.exporter import ExportSpec
from hwnas.export.onnx import INPUT, OUTPUT
from hwnas.graphs.onnx import onnx_model
from hwnas.graphs.onnx_int8 import int8_model
from hwnas.graphs.plain import Graph, plain_graph
from hwnas.graphs.ranges import measure_ranges


def graph_of(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    precision: str,
    batch: int,
    calibration: Tensor | None,
    in_float: frozenset[str] = frozenset(),
) -> Graph:
    """The module as a plain graph, with ranges measured on the calibration images if it is to be int8.

    Nodes `in_float` (see `sensitive.py`) are not in int8 all the same. Raises ExportError for int8 without images,
    SpaceError for an operator that no format knows.
    """
    if precision == "int8" and calibration is None:
        raise ExportError("int8 activations are ranged on images: give some as the calibration")
    ranges = (
        measure_ranges(module, calibration, [input_shape]) if precision == "int8" and calibration is not None else None
    )
    return replace(plain_graph(module, [input_shape], batch=batch, ranges=ranges), in_float=in_float)


def onnx_of(module: nn.Module, spec: ExportSpec, *, symmetric: bool = False) -> onnx.ModelProto:
    """The module as ONNX of any batch with the spec's metadata, images -> logits; `symmetric` is TensorRT's int8."""
    graph = graph_of(module, spec.input_shape, spec.precision, 1, spec.calibration, spec.in_float)
    if symmetric and spec.precision == "int8":
        model = int8_model(graph, symmetric=True, rest="fp16", dynamic_batch=True)
    else:
        model = onnx_model(graph, spec.precision, dynamic_batch=True)
    names = {model.graph.input[0].name: INPUT, model.graph.output[0].name: OUTPUT}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
    onnx.helper.set_model_props(model, dict(spec.metadata))
    onnx.checker.check_model(model, full_check=True)
    return model


def program_of(module: nn.Module, spec: ExportSpec, largest_batch: int | None) -> torch.export.ExportedProgram:
    """The module as torch.export has it, for batches up to the largest. Raises ExportError if it cannot be."""
    batch = torch.export.Dim("batch", min=1, **({} if largest_batch is None else {"max": largest_batch}))
    # Two images: with one the batch would be taken for a constant.
    images = torch.zeros(2, *spec.input_shape)
    with evaluation(module):
        try:
            return torch.export.export(module, (images,), dynamic_shapes=({0: batch},))
        except Exception as error:  # it raises many unrelated types
            raise ExportError(f"torch.export cannot take the network: {type(error).__name__}: {error}") from error


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode; afterwards every part is in the mode that it was in."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode
