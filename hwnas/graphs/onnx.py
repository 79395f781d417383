"""A plain graph as ONNX, with the operators that torch.onnx.export writes for the same module.

So a profile stands for the exported file; a test compares the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import SpaceError
from hwnas.graphs.plain import Graph, Node

OPSET = 18


def write(graph: Graph, path: Path, precision: str) -> None:
    """Write the graph to a file. Raises SpaceError for a precision or an operator without a form in ONNX."""
    onnx.save(onnx_model(graph, precision), path)


def onnx_model(graph: Graph, precision: str = "fp32") -> onnx.ModelProto:
    """The graph as an ONNX model: inputs and output float32, of the graph's shapes."""
    if precision != "fp32":
        raise SpaceError(f"no ONNX form of precision {precision!r} is known")
    writer = _Writer(graph)
    for node in graph.nodes:
        writer.add(node)

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, graph.shapes[name])

    body = helper.make_graph(
        writer.nodes, "hwnas", [value(name) for name in graph.inputs], [value(graph.output)], writer.weights
    )
    # Opset 18 belongs to IR version 8: said here because the library's default is newer than old runtimes read.
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="hwnas")


@dataclass
class _Writer:
    graph: Graph
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, node: Node) -> None:
        attributes = node.attributes
        if node.kind == "conv":
            names = [self._weight(node, "weight", node.weights["weight"])]
            if attributes["has_bias"]:
                names.append(self._weight(node, "bias", node.weights["bias"]))
            self._node(
                node,
                "Conv",
                names,
                kernel_shape=node.weights["weight"].shape[2:],
                strides=attributes["stride"],
                pads=[*attributes["padding"]] * 2,
                dilations=attributes["dilation"],
                group=attributes["groups"],
            )
        elif node.kind == "linear":
            self._node(node, "Gemm", [self._weight(node, name, node.weights[name]) for name in node.weights], transB=1)
        elif node.kind == "batch_norm":
            scale, shift = node.weights["scale"], node.weights["shift"]
            arrays = {"s": scale, "b": shift, "m": np.zeros_like(scale), "v": np.ones_like(scale)}
            names = [self._weight(node, name, array) for name, array in arrays.items()]
            self._node(node, "BatchNormalization", names, epsilon=0.0)
        elif node.kind == "global_avg_pool":
            self._node(node, "ReduceMean", [self._weight(node, "axes", np.array([-1, -2]))], keepdims=1)
        elif node.kind in ("avg_pool", "max_pool"):
            pool: dict[str, Any] = {
                "kernel_shape": attributes["kernel"],
                "strides": attributes["stride"],
                "pads": [*attributes["padding"]] * 2,
            }
            if node.kind == "avg_pool":
                pool["count_include_pad"] = int(attributes["count_include_pad"])
            self._node(node, "AveragePool" if node.kind == "avg_pool" else "MaxPool", [], **pool)
        elif node.kind == "flatten":
            shape = np.array([self.graph.batch, math.prod(self.graph.shapes[node.output][1:])])
            self._node(node, "Reshape", [self._weight(node, "shape", shape)])
        elif node.kind == "relu6":
            limits = {"min": np.float32(0), "max": np.float32(6)}
            self._node(node, "Clip", [self._weight(node, name, value) for name, value in limits.items()])
        elif node.kind == "silu":
            gate = f"{node.name}.sigmoid"
            self.nodes.append(helper.make_node("Sigmoid", node.inputs, [gate], name=gate))
            self._node(node, "Mul", [gate])
        elif node.kind in _SIMPLE:
            kind, extra = _SIMPLE[node.kind]
            self._node(node, kind, [], **extra)
        else:
            raise SpaceError(f"{node.name}: no ONNX form of {node.kind} is known; add it to hwnas/graphs/onnx.py")

    def _weight(self, node: Node, suffix: str, array: Any) -> str:
        name = f"{node.name}.{suffix}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _node(self, node: Node, kind: str, extra: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, [*node.inputs, *extra], [node.output], name=node.name, **attributes))


_SIMPLE: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "hardswish": ("HardSwish", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "sigmoid": ("Sigmoid", {}),
    "add": ("Add", {}),
    "mul": ("Mul", {}),
    "concat": ("Concat", {"axis": 1}),
}
