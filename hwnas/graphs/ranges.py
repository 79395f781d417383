"""What the tensors of a network range over on calibration images: the scales of an int8 file come from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from hwnas.errors import DataError
from hwnas.graphs.plain import Range
from hwnas.trace import Shape, trace

# The part of a tensor's values, at either end, that is left out: a few outliers would cost all others their precision.
OUTLIERS = 1e-4
_BATCH = 32


def measure_ranges(module: nn.Module, images: Tensor, input_shapes: Sequence[Shape]) -> dict[str, Range]:
    """Tensor -> the range of its values, by the names of the module's trace, as `plain_graph(ranges=...)` takes them.

    `images` are (n, channels, height, width), normalised as the network's inputs are. For every 32 of them, the range
    is that of a tensor's values without the 1 in 10,000 that are smallest and largest; of these ranges, the hull. The
    module is run in evaluation mode and left in the mode that it was in. Raises DataError for images of another shape
    or values that are not finite, SpaceError for a module that cannot be traced or has several inputs.
    """
    traced = trace(module, input_shapes)
    if len(traced.inputs) != 1:
        raise DataError(f"ranges are measured of networks with one input, {type(module).__name__} has {traced.inputs}")
    if tuple(images.shape[1:]) != tuple(input_shapes[0]) or not len(images):
        raise DataError(f"calibration needs images (n, *{tuple(input_shapes[0])}), got {tuple(images.shape)}")
    training = {part: part.training for part in module.modules()}
    observer = _Observer(fx.GraphModule(module, fx.Tracer().trace(module)))
    parameter = next(module.parameters(), images)
    try:
        module.eval()
        with torch.no_grad():
            for first in range(0, len(images), _BATCH):
                observer.run(images[first : first + _BATCH].to(parameter.device, parameter.dtype))
    finally:
        for part, mode in training.items():
            part.training = mode
    return observer.ranges


class _Observer(fx.Interpreter):
    """Runs a traced module and keeps the range of every tensor in it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.ranges: dict[str, Range] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op != "output":
            # Taken at once: the next operator may work in place.
            low, high = _limits(result, n.name)
            known = self.ranges.get(n.name, (low, high))
            self.ranges[n.name] = min(low, known[0]), max(high, known[1])
        return result


def _limits(tensor: Tensor, name: str) -> Range:
    values = tensor.flatten().float()
    if not torch.isfinite(values).all():
        raise DataError(f"the calibration images give values that are not finite at {name}")
    left_out = int(OUTLIERS * len(values))
    return float(values.kthvalue(left_out + 1).values), float(values.kthvalue(len(values) - left_out).values)
