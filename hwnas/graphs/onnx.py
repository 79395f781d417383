"""A plain graph as ONNX, with the operators that torch.onnx.export writes for the same module.

So a profile stands for the exported file; a test compares the two. In fp16 and bf16 weights and activations are of that
type, between one Cast from float32 at each input and one to float32 at the output: what strongly typed TensorRT
networks and ONNX Runtime on GPUs want. int8 is in `onnx_int8.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import SpaceError
from hwnas.graphs.plain import Array, Graph, Node

# precision -> type of weights and activations, opset, and the IR version that this opset belongs to: said here because
# the library's default is newer than old runtimes read. Convolutions of bfloat16 are in no opset before 22.
FLOATS = {
    "fp32": (TensorProto.FLOAT, 18, 8),
    "fp16": (TensorProto.FLOAT16, 18, 8),
    "bf16": (TensorProto.BFLOAT16, 22, 10),
}


def write(graph: Graph, path: Path, precision: str) -> None:
    """Write the graph to a file. Raises SpaceError for a precision or an operator without a form in ONNX."""
    onnx.save(onnx_model(graph, precision), path)


def onnx_model(graph: Graph, precision: str = "fp32", *, dynamic_batch: bool = False) -> onnx.ModelProto:
    """The graph as an ONNX model: inputs and output float32, of the graph's shapes, or any batch if `dynamic_batch`.

    int8 is the form for CPUs, see `onnx_int8.py`. Raises SpaceError for a precision or an operator without a form in
    ONNX, and for weights beyond the range of the precision.
    """
    if precision == "int8":
        from hwnas.graphs.onnx_int8 import int8_model

        return int8_model(graph, dynamic_batch=dynamic_batch)
    if precision not in FLOATS:
        raise SpaceError(f"no ONNX form of precision {precision!r} is known; known: {', '.join(FLOATS)}, int8")
    return FloatWriter(graph, FLOATS[precision], dynamic_batch).model()


class FloatWriter:
    """Writes a graph node by node; `source` says under which name a tensor is read."""

    def __init__(self, graph: Graph, floats: tuple[int, int, int], dynamic_batch: bool) -> None:
        self.graph, self.dynamic_batch = graph, dynamic_batch
        self.type, self._opset, self._ir_version = floats
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._renamed: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:
        """The whole model."""
        for name in self.graph.inputs:
            self.begin(name)
        for node in self.graph.nodes:
            self.add(node)
        output = self.end(self.graph.output)
        body = helper.make_graph(
            self.nodes,
            "hwnas",
            [self._value(name, self.graph.shapes[name]) for name in self.graph.inputs],
            [self._value(output, self.graph.shapes[self.graph.output])],
            self.weights,
        )
        return helper.make_model(
            body,
            opset_imports=[helper.make_opsetid("", self._opset)],
            ir_version=self._ir_version,
            producer_name="hwnas",
        )

    def begin(self, name: str) -> None:
        """What stands between an input of the model and its readers."""
        if self.type != TensorProto.FLOAT:
            self.rename(name, self._cast(name, f"{name}.cast", self.type))

    def end(self, name: str) -> str:
        """What stands between the last tensor and the model's output; the output's name."""
        written = self.source(name)
        return written if self.type == TensorProto.FLOAT else self._cast(written, f"{name}.float32", TensorProto.FLOAT)

    def source(self, name: str) -> str:
        """The name under which a tensor of the graph is read."""
        return self._renamed.get(name, name)

    def rename(self, name: str, written: str) -> None:
        """Let a tensor of the graph be read under another name from here on."""
        self._renamed[name] = written

    def add(self, node: Node) -> None:
        """Write one operator. Raises SpaceError for one without a form in ONNX."""
        attributes = node.attributes
        if node.kind == "conv":
            self.operator(
                node,
                "Conv",
                self.parameters(node, with_bias=attributes["has_bias"]),
                kernel_shape=node.weights["weight"].shape[2:],
                strides=attributes["stride"],
                pads=[*attributes["padding"]] * 2,
                dilations=attributes["dilation"],
                group=attributes["groups"],
            )
        elif node.kind == "linear":
            self.operator(node, "Gemm", self.parameters(node, with_bias=True), transB=1)
        elif node.kind == "batch_norm":
            scale, shift = node.weights["scale"], node.weights["shift"]
            arrays = {"s": scale, "b": shift, "m": np.zeros_like(scale), "v": np.ones_like(scale)}
            names = [self.weight(node, name, array) for name, array in arrays.items()]
            self.operator(node, "BatchNormalization", names, epsilon=0.0)
        elif node.kind == "global_avg_pool":
            self.operator(node, "ReduceMean", [self.constant(f"{node.name}.axes", np.array([-1, -2]))], keepdims=1)
        elif node.kind in ("avg_pool", "max_pool"):
            pool: dict[str, Any] = {
                "kernel_shape": attributes["kernel"],
                "strides": attributes["stride"],
                "pads": [*attributes["padding"]] * 2,
            }
            if node.kind == "avg_pool":
                pool["count_include_pad"] = int(attributes["count_include_pad"])
            self.operator(node, "AveragePool" if node.kind == "avg_pool" else "MaxPool", [], **pool)
        elif node.kind == "flatten":
            # A zero takes the extent of the input.
            batch = 0 if self.dynamic_batch else self.graph.batch
            shape = np.array([batch, math.prod(self.graph.shapes[node.output][1:])])
            self.operator(node, "Reshape", [self.constant(f"{node.name}.shape", shape)])
        elif node.kind == "relu6":
            limits = {"min": np.float32(0), "max": np.float32(6)}
            self.operator(node, "Clip", [self.weight(node, name, value) for name, value in limits.items()])
        elif node.kind == "silu":
            gate = f"{node.name}.sigmoid"
            source = self.source(node.inputs[0])
            self.nodes.append(helper.make_node("Sigmoid", [source], [gate], name=gate))
            self.operator(node, "Mul", [gate])
        elif node.kind in _SIMPLE:
            kind, extra = _SIMPLE[node.kind]
            self.operator(node, kind, [], **extra)
        else:
            raise SpaceError(f"{node.name}: no ONNX form of {node.kind} is known; add it to hwnas/graphs/onnx.py")

    def operator(self, node: Node, kind: str, extra: Sequence[str], **attributes: Any) -> None:
        """Write an operator that reads the node's inputs and the `extra` tensors."""
        sources = [self.source(name) for name in node.inputs]
        self.nodes.append(helper.make_node(kind, [*sources, *extra], [node.output], name=node.name, **attributes))

    def parameters(self, node: Node, *, with_bias: bool) -> list[str]:
        """The names of the weight and the bias of a convolution or a linear layer."""
        return [self.weight(node, name, node.weights[name]) for name in ("weight", "bias")[: 1 + with_bias]]

    def weight(self, node: Node, suffix: str, array: Any) -> str:
        """A constant in the type of the activations; its name."""
        name, array = f"{node.name}.{suffix}", np.asarray(array, np.float32)
        if self.type == TensorProto.BFLOAT16:
            bits = _bfloat16_bits(array)
            self.weights.append(helper.make_tensor(name, self.type, array.shape, bits.tobytes(), raw=True))
            return name
        if self.type == TensorProto.FLOAT16:
            limit = float(np.finfo(np.float16).max)
            if np.abs(array).max(initial=0) > limit:
                raise SpaceError(f"{name} goes up to {np.abs(array).max()}, and fp16 only to {limit}; use bf16 or fp32")
            array = array.astype(np.float16)
        return self.constant(name, array)

    def constant(self, name: str, array: Any) -> str:
        """A constant of the array's own type; its name."""
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _cast(self, source: str, name: str, kind: int) -> str:
        self.nodes.append(helper.make_node("Cast", [source], [name], name=name, to=kind))
        return name

    def _value(self, name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        batch = "batch" if self.dynamic_batch else shape[0]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape[1:]])


def _bfloat16_bits(array: Array) -> Array:
    """The upper halves of float32 numbers, rounded to the nearest, ties to even; uint16, little-endian."""
    bits = array.astype("<f4").view("<u4")
    halves: Array = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return halves


_SIMPLE: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "hardswish": ("HardSwish", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "sigmoid": ("Sigmoid", {}),
    "add": ("Add", {}),
    "mul": ("Mul", {}),
    "concat": ("Concat", {"axis": 1}),
}
