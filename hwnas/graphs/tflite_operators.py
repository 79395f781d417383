"""The form of each operator of a plain graph in a LiteRT file: one function per kind, in FORMS.

Exactly PyTorch's numbers, also where the format's padding and PyTorch's differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from hwnas.errors import SpaceError
from hwnas.graphs.plain import Node
from hwnas.graphs.tflite_file import Array, Tensor
from hwnas.graphs.tflite_quantise import SIGMOID, range_scale
from hwnas.graphs.tflite_step import NO_ACTIVATION, VALID, Step

_RELU6 = schema.ActivationFunctionType.RELU6
_SIX = range_scale(0, 6)
_GROUPED = 6  # the version of CONV_2D that knows groups
_MOST_TAPS = 25  # of XNNPACK's kernels for depthwise convolutions


def is_wide(node: Node) -> bool:
    """Whether the node is a depthwise convolution that is written as several, each of a few columns of its kernel."""
    if node.kind != "conv" or node.attributes["groups"] == 1 or node.weights["weight"].shape[1] > 1:
        return False
    height, width = (int(extent) for extent in node.weights["weight"].shape[2:])
    symmetric = width % 2 == 1 and node.attributes["padding"][1] >= width // 2 * node.attributes["dilation"][1]
    return bool(symmetric and height * width > _MOST_TAPS >= 2 * height)


def _conv(step: Step) -> Tensor:
    return _wide_depthwise(step) if is_wide(step.node) else _plain_conv(step)


def _plain_conv(step: Step) -> Tensor:
    weight, bias, attributes = step.node.weights["weight"], step.node.weights["bias"], step.node.attributes
    dilation, groups = attributes["dilation"], attributes["groups"]
    kernel = tuple((extent - 1) * factor + 1 for extent, factor in zip(weight.shape[2:], dilation, strict=True))
    source, padding = step.padded(kernel)
    depthwise = groups == source.shape[3] > 1
    options: Any = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding = padding
    options.strideH, options.strideW = attributes["stride"]
    options.dilationHFactor, options.dilationWFactor = dilation
    if not depthwise:
        inputs = (source, *step.weights(weight.transpose(0, 2, 3, 1), bias, 0))
        return step.operator("CONV_2D", inputs, options, _GROUPED if groups > 1 else None)
    options.depthMultiplier = len(weight) // groups
    inputs = (source, *step.weights(weight.transpose(1, 2, 3, 0), bias, 3))
    return step.operator("DEPTHWISE_CONV_2D", inputs, options)


def _wide_depthwise(step: Step) -> Tensor:
    """The sum of convolutions with the first, middle and last column of the kernel, the second and last but one, ...

    Each has few enough taps, and is symmetric: columns that lie apart are a dilation. A kernel too high for three
    columns has its middle one alone.
    """
    weight, attributes = step.node.weights["weight"], step.node.attributes
    height, width = weight.shape[2:]
    (above, beside), (down, across) = attributes["padding"], attributes["dilation"]
    middle = width // 2
    pairs = [[column, width - 1 - column] for column in range(middle)]
    columns = [[0, middle, width - 1], *pairs[1:]] if 3 * height <= _MOST_TAPS else [[middle], *pairs]
    parts: list[Tensor] = []
    for chosen in columns:
        bias = step.node.weights["bias"] if not parts else np.zeros(len(weight), np.float32)
        gap = chosen[1] - chosen[0] if len(chosen) > 1 else 1
        few = replace(
            step.node,
            name=f"{step.node.name}/columns{'_'.join(map(str, chosen))}",
            weights={"weight": weight[..., chosen], "bias": bias},
            attributes={
                **attributes,
                "padding": (above, beside - chosen[0] * across),
                "dilation": (down, gap * across),
            },
        )
        parts.append(_plain_conv(replace(step, node=few, name=few.name, activation=NO_ACTIVATION)))
    total, *others = parts
    for number, part in enumerate(others, 1):
        whole = step if number == len(others) else step.part(f"sum{number}")
        total = whole.operator("ADD", (total, part), schema.AddOptionsT())
    return total


def _batch_norm(step: Step) -> Tensor:
    """A depthwise 1x1 convolution: one operator, and in int8 a scale per channel."""
    options = schema.DepthwiseConv2DOptionsT(padding=VALID, strideH=1, strideW=1, depthMultiplier=1)
    weight, bias = step.node.weights["scale"].reshape(1, 1, 1, -1), step.node.weights["shift"]
    return step.operator("DEPTHWISE_CONV_2D", (*step.inputs, *step.weights(weight, bias, 3)), options)


def _linear(step: Step) -> Tensor:
    weights = step.weights(step.node.weights["weight"], step.node.weights["bias"], 0)
    return step.operator("FULLY_CONNECTED", (*step.inputs, *weights), schema.FullyConnectedOptionsT())


def _relu(step: Step) -> Tensor:
    scale = step.scale
    # An int8 scale from zero, to at most 6 if need be, saturates as the activation does.
    if scale is not None and scale.zero == -128 and (step.node.kind == "relu" or scale.scale <= _SIX.scale):
        return step.file.quantised(step.inputs[0], step.name, scale)
    return step.operator(step.node.kind.upper(), step.inputs)


def _sigmoid(step: Step) -> Tensor:
    if step.scale is None or step.scale == SIGMOID:
        return step.operator("LOGISTIC", step.inputs)
    own = step.part("sigmoid", SIGMOID).operator("LOGISTIC", step.inputs)
    return step.file.quantised(own, step.name, step.scale)


def _silu(step: Step) -> Tensor:
    gate = step.part("gate", SIGMOID).operator("LOGISTIC", step.inputs)
    return step.operator("MUL", (*step.inputs, gate), schema.MulOptionsT())


def _hardsigmoid(step: Step) -> Tensor:
    """relu6(x + 3) / 6, as Keras writes it: the format has no operator for it."""
    shifted = replace(step.part("shifted", _SIX), activation=_RELU6)
    inputs = (*step.inputs, shifted.number("three", 3.0))
    inputs = (shifted.operator("ADD", inputs, schema.AddOptionsT()), step.number("sixth", 1 / 6))
    return step.operator("MUL", inputs, schema.MulOptionsT())


def _of_one_rank(step: Step) -> tuple[Tensor, ...]:
    shapes = [tensor.shape for tensor in step.inputs]
    if len({len(shape) for shape in shapes}) > 1:
        raise SpaceError(f"{step.node.name}: channels are last in LiteRT files, so {shapes} do not broadcast there")
    return step.inputs


def _global_avg_pool(step: Step) -> Tensor:
    return step.operator("MEAN", (*step.inputs, step.integers("axes", [1, 2])), schema.ReducerOptionsT(keepDims=True))


def _max_pool(step: Step) -> Tensor:
    source, padding = step.padded(step.node.attributes["kernel"], lowest=step.negative)
    return _pool(step, "MAX_POOL_2D", source, padding)


def _avg_pool(step: Step) -> Tensor:
    """Padding that counts is padded as zeros. The format's own padding does not count, and where it is not PyTorch's,
    means over windows padded with zeros are multiplied by a constant, kernel's size / pixels in the window."""
    attributes = step.node.attributes
    source, padding = step.padded(attributes["kernel"], same=not attributes["count_include_pad"])
    if attributes["count_include_pad"] or source is step.inputs[0]:
        return _pool(step, "AVERAGE_POOL_2D", source, padding)
    means = _pool(step.part("mean"), "AVERAGE_POOL_2D", source, padding)
    geometry = zip(step.inputs[0].shape[1:3], step.shape[1:3], attributes["padding"], strict=True)
    parts = [
        _shares(*axis, kernel, stride)
        for axis, kernel, stride in zip(geometry, attributes["kernel"], attributes["stride"], strict=True)
    ]
    correction = step.file.constant(
        f"{step.name}/correction", 1 / np.outer(*parts)[None, :, :, None].astype(np.float32)
    )
    return step.operator("MUL", (means, correction), schema.MulOptionsT())


def _shares(size: int, output: int, padding: int, kernel: int, stride: int) -> Array:
    """(output,) which share of each window lies inside of the image, along one axis."""
    begin = np.arange(output) * stride - padding
    return (np.minimum(begin + kernel, size) - np.maximum(begin, 0)) / kernel


def _pool(step: Step, kind: str, source: Tensor, padding: int) -> Tensor:
    options = schema.Pool2DOptionsT(padding=padding)
    options.strideH, options.strideW = step.node.attributes["stride"]
    options.filterHeight, options.filterWidth = step.node.attributes["kernel"]
    return step.operator(kind, (source,), options)


def _flatten(step: Step) -> Tensor:
    """PyTorch flattens channels first: where there is more than one pixel, they are brought there."""
    (source,) = step.inputs
    if len(source.shape) == 4 and math.prod(source.shape[1:3]) > 1:
        batch, height, width, channels = source.shape
        turned = step.part("channels_first", shape=(batch, channels, height, width))
        source = turned.operator("TRANSPOSE", (source, turned.integers("order", [0, 3, 1, 2])))
    return step.operator("RESHAPE", (source, step.integers("shape", step.shape)), schema.ReshapeOptionsT([*step.shape]))


FORMS: dict[str, Callable[[Step], Tensor]] = {
    "conv": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu": _relu,
    "relu6": _relu,
    "hardswish": lambda step: step.operator("HARD_SWISH", step.inputs, schema.HardSwishOptionsT()),
    "hardsigmoid": _hardsigmoid,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "add": lambda step: step.operator("ADD", _of_one_rank(step), schema.AddOptionsT()),
    "mul": lambda step: step.operator("MUL", _of_one_rank(step), schema.MulOptionsT()),
    "concat": lambda step: step.operator(
        "CONCATENATION", step.inputs, schema.ConcatenationOptionsT(axis=len(step.shape) - 1)
    ),
    "global_avg_pool": _global_avg_pool,
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    "flatten": _flatten,
}
