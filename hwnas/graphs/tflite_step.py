"""One operator of a plain graph on its way into a LiteRT file: its inputs there, its result, its constants."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from hwnas.graphs.plain import Node
from hwnas.graphs.tflite_file import Array, ModelFile, Scale, Tensor
from hwnas.graphs.tflite_quantise import int8_weights, positive_constant
from hwnas.trace import Shape

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
NO_ACTIVATION = schema.ActivationFunctionType.NONE


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
    activation: int = NO_ACTIVATION
    halves: bool = False
    negative: bool = True

    def part(self, name: str, scale: Scale | None = None, shape: Shape | None = None) -> Step:
        """A step on the way: its result has a name below this one's, and no activation."""
        scale = None if self.scale is None else scale or self.scale
        return replace(
            self, name=f"{self.name}/{name}", shape=shape or self.shape, scale=scale, activation=NO_ACTIVATION
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
            return source, VALID
        if same and all(_same(*axis) == pad for axis, pad in zip(axes, (vertical, horizontal), strict=True)):
            return source, SAME
        batch, height, width, channels = source.shape
        shape = (batch, height + 2 * vertical, width + 2 * horizontal, channels)
        step = self.part("padded", source.scale, shape)
        inputs = (source, step.integers("sizes", [[0, 0], [vertical] * 2, [horizontal] * 2, [0, 0]]))
        if not lowest:
            return step.operator("PAD", inputs, schema.PadOptionsT()), VALID
        least = np.array([np.finfo(np.float32).min], np.float32) if source.scale is None else np.array([-128], np.int8)
        padding = self.file.constant(f"{step.name}/least", least, source.scale)
        return step.operator("PADV2", (*inputs, padding), schema.PadV2OptionsT()), VALID


def _same(size: int, output: int, kernel: int, stride: int) -> int | None:
    """How many rows SAME pads before the first one; None if it gives another number of outputs."""
    if output != math.ceil(size / stride):
        return None
    return max((output - 1) * stride + kernel - size, 0) // 2
