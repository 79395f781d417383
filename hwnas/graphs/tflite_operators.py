"""The form of each operator of a plain graph in a LiteRT file: one function per kind, in FORMS.

Exactly PyTorch's numbers, also where the format's padding and PyTorch's differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from hwnas.errors import SpaceError
from hwnas.graphs.plain import Node
from hwnas.graphs.tflite_file import Array, ModelFile, Scale, Tensor
from hwnas.graphs.tflite_quantise import SIGMOID, int8_weights, positive_constant, range_scale
from hwnas.trace import Shape

_SAME, _VALID = schema.Padding.SAME, schema.Padding.VALID
_RELU6 = schema.ActivationFunctionType.RELU6
_SIX = range_scale(0, 6)
_GROUPED = 6  # the version of CONV_2D that knows groups


@dataclass(frozen=True)
class Step:
    """What a node becomes: a tensor of this name, shape and (in int8) scale, made of `inputs`, all of one type.

    `activation` is one that the node's operator computes too; `halves` is whether weights are kept as float16;
    `negative` is whether the first input may hold numbers below zero.
    """

    file: ModelFile
    node: Node
    inputs: tuple[Tensor, ...]
    name: str
    shape: Shape
    scale: Scale | None
    activation: int = schema.ActivationFunctionType.NONE
    halves: bool = False
    negative: bool = True

    def part(
        self, name: str, inputs: tuple[Tensor, ...], scale: Scale | None = None, shape: Shape | None = None
    ) -> Step:
        """A step on the way: its result has a name below this one's, and no activation."""
        none = schema.ActivationFunctionType.NONE
        scale = None if self.scale is None else scale or self.scale
        return replace(
            self, name=f"{self.name}/{name}", inputs=inputs, shape=shape or self.shape, scale=scale, activation=none
        )

    def operator(
        self, kind: str, inputs: tuple[Tensor, ...], options: Any = None, version: int | None = None
    ) -> Tensor:
        """Append the operator that computes the step's result; the activation goes into its options."""
        if hasattr(options, "fusedActivationFunction"):
            options.fusedActivationFunction = self.activation
        result = self.file.tensor(self.name, self.shape, inputs[0].dtype, self.scale)
        return self.file.operator(kind, inputs, result, options, version=version)

    def integers(self, name: str, values: Any) -> Tensor:
        """Constant sizes, axes or orders."""
        return self.file.constant(f"{self.name}/{name}", np.array(values, np.int32))

    def number(self, name: str, value: float) -> Tensor:
        """One constant number above zero, of the type of the step's tensors."""
        if self.scale is None:
            return self.file.constant(f"{self.name}/{name}", np.array([value], np.float32))
        return self.file.constant(f"{self.name}/{name}", *positive_constant(value))

    def weights(self, weight: Array, bias: Array, axis: int) -> tuple[Tensor, Tensor]:
        """Weights and bias; `axis` is the one of the output channels."""
        names = f"{self.node.name}/weight", f"{self.node.name}/bias"
        if self.scale is not None:
            source = self.inputs[0].scale
            assert source is not None
            integers, scale, sums = int8_weights(weight, bias, axis, source, self.scale)
            of_sums = Scale(np.float32(scale.scale * source.scale))
            return self.file.constant(names[0], integers, scale), self.file.constant(names[1], sums, of_sums)
        constant = self._half if self.halves else self.file.constant
        return constant(names[0], weight), constant(names[1], bias)

    def _half(self, name: str, array: Array) -> Tensor:
        limit = np.finfo(np.float16).max  # beyond it a half is infinite
        half = self.file.constant(f"{name}/fp16", np.clip(array, -limit, limit).astype(np.float16))
        return self.file.as_float(half, name)

    def padded(self, kernel: Shape, *, same: bool = True, lowest: bool = False) -> tuple[Tensor, int]:
        """The first input and the padding left to the operator: what the format calls SAME, or VALID after a PAD.

        SAME puts an odd row at the end where PyTorch pads both sides alike, so with a stride the two are often not the
        same. `same` is whether SAME may be used at all, `lowest` whether padding is the least number, not zero.
        """
        source, (vertical, horizontal) = self.inputs[0], self.node.attributes["padding"]
        axes = zip(source.shape[1:3], self.shape[1:3], kernel, self.node.attributes["stride"], strict=True)
        if not vertical and not horizontal:
            return source, _VALID
        if same and all(_same(*axis) == pad for axis, pad in zip(axes, (vertical, horizontal), strict=True)):
            return source, _SAME
        batch, height, width, channels = source.shape
        shape = (batch, height + 2 * vertical, width + 2 * horizontal, channels)
        step = self.part("padded", (source,), source.scale, shape)
        inputs = (source, step.integers("sizes", [[0, 0], [vertical] * 2, [horizontal] * 2, [0, 0]]))
        if not lowest:
            return step.operator("PAD", inputs, schema.PadOptionsT()), _VALID
        least = np.array([np.finfo(np.float32).min], np.float32) if source.scale is None else np.array([-128], np.int8)
        padding = self.file.constant(f"{step.name}/least", least, source.scale)
        return step.operator("PADV2", (*inputs, padding), schema.PadV2OptionsT()), _VALID


def _same(size: int, output: int, kernel: int, stride: int) -> int | None:
    """How many rows SAME pads before the first one; None if it gives another number of outputs."""
    if output != math.ceil(size / stride):
        return None
    return max((output - 1) * stride + kernel - size, 0) // 2


def _conv(step: Step) -> Tensor:
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


def _batch_norm(step: Step) -> Tensor:
    """A depthwise 1x1 convolution: one operator, and in int8 a scale per channel."""
    options = schema.DepthwiseConv2DOptionsT(padding=_VALID, strideH=1, strideW=1, depthMultiplier=1)
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
    own = step.part("sigmoid", step.inputs, SIGMOID).operator("LOGISTIC", step.inputs)
    return step.file.quantised(own, step.name, step.scale)


def _silu(step: Step) -> Tensor:
    gate = step.part("gate", step.inputs, SIGMOID).operator("LOGISTIC", step.inputs)
    return step.operator("MUL", (*step.inputs, gate), schema.MulOptionsT())


def _hardsigmoid(step: Step) -> Tensor:
    """relu6(x + 3) / 6, as Keras writes it: the format has no operator for it."""
    shifted = replace(step.part("shifted", step.inputs, _SIX), activation=_RELU6)
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
    means = _pool(step.part("mean", step.inputs), "AVERAGE_POOL_2D", source, padding)
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
        turned = step.part("channels_first", step.inputs, shape=(batch, channels, height, width))
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
