"""A plain graph as int8 ONNX in QDQ form: pairs of QuantizeLinear and DequantizeLinear around what computes in int8.

Weights are symmetric, one scale per output channel; activations have one scale per tensor, from the graph's ranges.
Two forms, because no runtime runs the other's well:

for CPUs (ONNX Runtime, OpenVINO): uint8 activations with a zero point, int8 weights, int32 biases of scale input *
weight, everything else float32. Every convolution, linear layer, addition, product, concatenation and pool has a pair
before and after it, since ONNX Runtime computes in int8 only between pairs; a ReLU is left to the pair after it, whose
smallest number is its zero. Sigmoids, hard-swish and batch normalisations without a convolution compute in float
between pairs, for want of int8 kernels. So does average pooling: ONNX Runtime's int8 kernel took 77 microseconds where
the float one takes 3 (16 channels of 32x32). A Max that changes nothing keeps the pair after it from making it int8;
without that pair, additions and layouts around it changed with it, and latency was not the sum of blocks any more (9%
error on unseen networks of NAS-Bench-201, 3% with it).

symmetric (TensorRT): int8 activations with zero point 0, as it takes no others, weights as floats behind a pair, float
biases, everything else in `rest`, so fp16 if wanted. Pairs only before convolutions and linear layers and on the other
branch of an addition to a convolution, as NVIDIA advises: what lies between is then fused into the convolution.

Nodes of `graph.in_float` have float weights and count as operators without a form in int8: no pair is there for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from hwnas.errors import SpaceError
from hwnas.graphs.onnx import FLOATS, FloatWriter
from hwnas.graphs.plain import Array, Graph, Node, Range

# What is not quantised -> its type, opset and IR version; scales in fp16 are in no opset before 19.
RESTS = {"fp32": FLOATS["fp32"], "fp16": (TensorProto.FLOAT16, 19, 9)}

_WEIGHTED = {"conv", "linear"}
_INT8 = _WEIGHTED | {"add", "mul", "concat", "max_pool", "avg_pool", "global_avg_pool", "flatten"}
_CLAMPS = {"relu", "relu6"}
# These only choose or copy numbers, so what they read and what they give has one scale.
_COPYING = {"concat", "max_pool", "flatten"}
# A bias in int32 must fit beside the sum of products that it starts.
_BIAS_LIMIT = 2**30
_LEAST_SUM = float(np.finfo(np.float32).tiny)
_LOWEST = float(np.finfo(np.float32).min)


def int8_model(
    graph: Graph, *, dynamic_batch: bool = False, symmetric: bool = False, rest: str = "fp32"
) -> onnx.ModelProto:
    """The graph as an int8 ONNX model with float32 inputs and output: for CPUs, or symmetric for TensorRT.

    `rest` is the precision of what is not quantised, fp32 or, if symmetric, fp16. Raises SpaceError for an operator
    without a form in ONNX.
    """
    if rest not in RESTS or (rest != "fp32" and not symmetric):
        raise SpaceError(f"beside int8 the rest can be fp32, or fp16 if symmetric, got {rest!r}")
    return Int8Writer(graph, rest, symmetric, dynamic_batch).model()


class Int8Writer(FloatWriter):
    """Writes pairs around the nodes; a node reads a DequantizeLinear of its own, which so carries its block's tag."""

    def __init__(self, graph: Graph, rest: str, symmetric: bool, dynamic_batch: bool) -> None:
        super().__init__(graph, RESTS[rest], dynamic_batch)
        self._symmetric = symmetric
        self._scale_type = np.float16 if rest == "fp16" else np.float32
        self._ranges = _shared_ranges(graph)
        self._makers = {node.output: node for node in graph.nodes}
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)
        self._scales: dict[str, tuple[str, str]] = {}  # quantised tensor -> names of its scale and zero point

    def begin(self, name: str) -> None:
        super().begin(name)
        self._quantise(name)

    def end(self, name: str) -> str:
        if name in self._scales:
            self._dequantise(name, f"{name}.dequantized")
        return super().end(name)

    def add(self, node: Node) -> None:
        for index, name in enumerate(dict.fromkeys(node.inputs)):
            if name in self._scales:
                self._dequantise(name, f"{node.name}.dequantized{index}")
        if node.kind == "global_avg_pool":  # ONNX Runtime has no mean over axes in int8
            self.operator(node, "GlobalAveragePool", [])
        elif self._symmetric:
            super().add(node)
        elif node.kind == "avg_pool" and self._wanted(node.output):
            super().add(node)
            self.nodes[-1].name = self.nodes[-1].output[0] = f"{node.name}.mean"
            self._node("Max", [f"{node.name}.mean", self.weight(node, "lowest", _LOWEST)], node.output)
        elif node.kind == "relu" and self._made_by(node.inputs[0]) == "avg_pool" and not self._wanted(node.inputs[0]):
            self.operator(node, "Max", [self.weight(node, "lowest", 0)])
        else:
            super().add(node)
        self._quantise(node.output)

    def parameters(self, node: Node, *, with_bias: bool) -> list[str]:
        if node.name in self.graph.in_float:
            return super().parameters(node, with_bias=with_bias)
        weight, bias = node.weights["weight"], node.weights["bias"]
        name = f"{node.name}.weight"
        scales = np.abs(weight).reshape(len(weight), -1).max(axis=1).astype(np.float64) / 127
        source = float(self._scale_of(node.inputs[0])[0])
        if with_bias and not self._symmetric:
            # a block of zeros has weights of the smallest scale, of which the bias's would be none
            scales = np.maximum(scales, np.maximum(np.abs(bias) / _BIAS_LIMIT, _LEAST_SUM) / source)
        scales = self._rounded(scales)
        zeros = self.constant(f"{name}.zero_point", np.zeros(len(scales), np.int8))
        names = [self.constant(f"{name}.scale", scales), zeros]
        if self._symmetric:
            self._node("QuantizeLinear", [self.weight(node, "weight", weight), *names], f"{name}.quantized", axis=0)
        else:
            column = scales.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
            self.constant(f"{name}.quantized", np.clip(np.rint(weight / column), -127, 127).astype(np.int8))
        written = [self._node("DequantizeLinear", [f"{name}.quantized", *names], f"{name}.dequantized", axis=0)]
        if with_bias and self._symmetric:
            written.append(self.weight(node, "bias", bias))
        elif with_bias:
            name, scales = f"{node.name}.bias", (scales * np.float32(source)).astype(np.float32)
            sums = np.rint(bias / scales.astype(np.float64)).astype(np.int32)
            names = [self.constant(f"{name}.quantized", sums), self.constant(f"{name}.scale", scales)]
            written.append(self._node("DequantizeLinear", names, f"{name}.dequantized", axis=0))
        return written

    def _wanted(self, name: str) -> bool:
        """Whether a tensor is quantised."""
        kind, readers = self._made_by(name), [self._kind(reader) for reader in self._readers.get(name, [])]
        if not _WEIGHTED.isdisjoint(readers):
            return True
        if self._symmetric:
            return not (kind in _WEIGHTED and len(readers) == 1) and "add" in readers
        if kind == "linear" and not readers:
            return False
        if kind in _INT8:
            clamps = {"relu"} if kind == "avg_pool" else _CLAMPS
            return not (len(readers) == 1 and readers[0] in clamps)
        return kind in _CLAMPS or not _INT8.isdisjoint(readers)

    def _made_by(self, name: str) -> str:
        """The kind of node that makes a tensor."""
        return self._kind(self._makers[name]) if name in self._makers else "input"

    def _kind(self, node: Node) -> str:
        return "float" if node.name in self.graph.in_float else node.kind

    def _quantise(self, name: str) -> None:
        if not self._wanted(name):
            return
        scale, zero = self._scale_of(name)
        self._scales[name] = self.constant(f"{name}.scale", scale), self.constant(f"{name}.zero_point", zero)
        self._node("QuantizeLinear", [self.source(name), *self._scales[name]], f"{name}.quantized")

    def _dequantise(self, name: str, written: str) -> None:
        self.rename(name, self._node("DequantizeLinear", [f"{name}.quantized", *self._scales[name]], written))

    def _scale_of(self, name: str) -> tuple[Array, Array]:
        """Scale and zero point; zero itself is always one of the 256 numbers."""
        low, high = self._ranges[name]
        # A tensor that is always zero is so on any scale; one of a usual size keeps the ratios between scales usual.
        if self._symmetric:
            return self._rounded(max(-low, high) / 127 or 1 / 127), np.array(0, np.int8)
        scale = self._rounded((high - low) / 255 or 1 / 255)
        return scale, np.array(np.clip(np.rint(-low / float(scale)), 0, 255), np.uint8)

    def _rounded(self, scales: Any) -> Array:
        """Scales in their type, none of them zero."""
        least = float(np.finfo(self._scale_type).smallest_subnormal)
        rounded: Array = np.maximum(scales, least).astype(self._scale_type)
        return rounded

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def _shared_ranges(graph: Graph) -> dict[str, Range]:
    """The range of every tensor, widened to zero, and to the ranges of those that it shares a scale with."""
    groups = {name: {name} for name in graph.ranges}
    for node in graph.nodes:
        if node.kind in _COPYING and node.name not in graph.in_float:
            merged = set().union(*(groups[name] for name in (*node.inputs, node.output)))
            groups.update(dict.fromkeys(merged, merged))
    return {
        name: (
            min(0.0, *(graph.ranges[member][0] for member in group)),
            max(0.0, *(graph.ranges[member][1] for member in group)),
        )
        for name, group in groups.items()
    }
