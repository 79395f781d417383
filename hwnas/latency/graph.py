"""Writes a module straight to ONNX, in milliseconds, for profiling.

The operators are those that torch.onnx.export writes for the same module (checked by a test that compares the two
graphs), so that a profile stands for the exported file. Batch normalisation is folded into the convolution before it,
as every runtime does. Each node's name begins with the tag of the block it belongs to, `b<position>:`, and each tensor
is named after its node: runtimes build the names of the kernels they fuse from either, so a measured kernel can be
given back to its block.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from hwnas.errors import SpaceError
from hwnas.space import Arch, Position, SearchSpace
from hwnas.trace import Op, Shape, Trace, trace

OPSET = 18
Array = NDArray[Any]

_TAG = re.compile(r"\bb(\d+):")


def block_index(kernel_name: str) -> int | None:
    """The position that a runtime's kernel belongs to, from its name; None for kernels the runtime added itself."""
    match = _TAG.search(kernel_name)
    return int(match.group(1)) if match else None


def onnx_model(
    module: nn.Module,
    input_shapes: Sequence[Shape],
    *,
    positions: Sequence[Position] = (),
    batch: int = 1,
) -> onnx.ModelProto:
    """The module as an ONNX model: inputs (batch, *shape) float, output as the module's.

    A module on the meta device gets random weights of a usual size (a profile does not depend on their values, as long
    as no activation is denormal or infinite). Raises SpaceError for an operator that cannot be written.
    """
    traced = trace(module, input_shapes)
    if traced.output in traced.inputs:
        raise SpaceError(f"{type(module).__name__} computes nothing, so there is no graph to write")
    return trace_model(traced, positions=positions, batch=batch)


def trace_model(traced: Trace, *, positions: Sequence[Position] = (), batch: int = 1) -> onnx.ModelProto:
    """The operators of a trace as an ONNX model, as `onnx_model` writes those of a module: one block's, say."""
    writer = _Writer(positions, batch)
    writer.write(traced)
    shape = next(op.output_shape for op in traced.ops if op.output == traced.output)
    graph = helper.make_graph(
        writer.nodes,
        "hwnas",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, (batch, *shape[1:]))
            for name, shape in zip(traced.inputs, traced.input_shapes, strict=True)
        ],
        [helper.make_tensor_value_info(writer.names[traced.output], TensorProto.FLOAT, (batch, *shape[1:]))],
        writer.weights,
    )
    # Opset 18 belongs to IR version 8: said here because the library's default is newer than old runtimes read.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="hwnas")


def write_graph(space: SearchSpace, arch: Arch, batch: int, path: Path) -> None:
    """Write an architecture's graph, with random weights and nodes tagged by position, for profiling."""
    with torch.device("meta"):
        module = space.build(arch)
    onnx.save(onnx_model(module, [space.input_shape(arch)], positions=space.positions, batch=batch), path)


@dataclass
class _Writer:
    positions: Sequence[Position]
    batch: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # tensor of the trace -> tensor of the graph
    random: _RandomWeights = field(default_factory=lambda: _RandomWeights())

    def write(self, traced: Trace) -> None:
        self.names = {name: name for name in traced.inputs}
        uses: dict[str, int] = {traced.output: 1}
        for op in traced.ops:
            for name in op.inputs:
                uses[name] = uses.get(name, 0) + 1
        following = {op.inputs[0]: op for op in traced.ops if op.kind == "batch_norm"}
        folded: set[str] = set()
        for op in traced.ops:
            if op.output in folded:
                continue
            norm = following.get(op.output)
            if op.kind == "conv" and norm is not None and uses[op.output] == 1:
                folded.add(norm.output)
                self._conv(op, norm)
            else:
                self._op(op)

    def _op(self, op: Op) -> None:
        if op.kind == "conv":
            self._conv(op, None)
        elif op.kind == "linear":
            assert isinstance(op.module, nn.Linear)
            if len(op.output_shape) != 2:
                raise SpaceError(f"{op.path}: flatten before the linear layer, its input is {op.input_shapes[0]}")
            weight, bias = self._weights(op, op.module.weight, op.module.bias)
            self._node(op, "Gemm", [weight, bias], transB=1)
        elif op.kind == "batch_norm":
            assert isinstance(op.module, nn.BatchNorm2d)
            scale, shift = self._norm(op.module)
            zero, one = np.zeros_like(scale), np.ones_like(scale)
            names = [
                self._weight(op, suffix, array) for suffix, array in zip("sbmv", (scale, shift, zero, one), strict=True)
            ]
            self._node(op, "BatchNormalization", names, epsilon=0.0)
        elif op.kind == "global_avg_pool":
            self._node(op, "ReduceMean", [self._weight(op, "axes", np.array([-1, -2]))], keepdims=1)
        elif op.kind in ("avg_pool", "max_pool"):
            self._pool(op)
        elif op.kind == "flatten":
            shape = np.array([self.batch, math.prod(op.output_shape[1:])])
            self._node(op, "Reshape", [self._weight(op, "shape", shape)])
        elif op.kind == "relu6":
            self._node(
                op, "Clip", [self._weight(op, name, np.float32(value)) for name, value in (("min", 0), ("max", 6))]
            )
        elif op.kind == "silu":
            gate = self._node(op, "Sigmoid", [], suffix="sigmoid")
            self._node(op, "Mul", [gate])
        elif op.kind in _SIMPLE:
            kind, attributes = _SIMPLE[op.kind]
            self._node(op, kind, [], **attributes)
        else:
            raise SpaceError(f"{op.path}: no ONNX form of {op.kind} is known; add it to hwnas/latency/graph.py")

    def _conv(self, op: Op, norm: Op | None) -> None:
        conv = op.module
        assert isinstance(conv, nn.Conv2d)
        weight, bias = self._arrays(conv.weight, conv.bias)
        if norm is not None:
            assert isinstance(norm.module, nn.BatchNorm2d)
            scale, shift = self._norm(norm.module)
            weight = weight * scale[:, None, None, None]
            bias = shift if bias is None else bias * scale + shift
        names = [self._weight(op, "weight", weight)]
        if bias is not None:
            names.append(self._weight(op, "bias", bias))
        self._node(
            op,
            "Conv",
            names,
            output=norm.output if norm is not None else op.output,
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[int(conv.padding[0]), int(conv.padding[1])] * 2,
            dilations=list(conv.dilation),
            group=conv.groups,
        )

    def _pool(self, op: Op) -> None:
        pool = op.module
        assert isinstance(pool, (nn.AvgPool2d, nn.MaxPool2d))
        kernel, stride, padding = (
            [value, value] if isinstance(value, int) else list(value)
            for value in (pool.kernel_size, pool.stride, pool.padding)
        )
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}
        if isinstance(pool, nn.AvgPool2d):
            self._node(op, "AveragePool", [], count_include_pad=int(pool.count_include_pad), **attributes)
        else:
            self._node(op, "MaxPool", [], **attributes)

    def _norm(self, norm: nn.BatchNorm2d) -> tuple[Array, Array]:
        """(channels,) factor and offset of a batch normalisation in inference."""
        assert norm.running_var is not None
        assert norm.running_mean is not None
        if norm.running_var.is_meta:
            return np.ones(norm.num_features, np.float32), self.random.like((norm.num_features,), 100)
        scale = _numpy(norm.weight if norm.affine else None, 1.0) / np.sqrt(_numpy(norm.running_var) + norm.eps)
        return scale, _numpy(norm.bias if norm.affine else None, 0.0) - _numpy(norm.running_mean) * scale

    def _arrays(self, weight: Tensor, bias: Tensor | None) -> tuple[Array, Array | None]:
        if weight.is_meta:
            fan_in = math.prod(weight.shape[1:])
            return (
                self.random.like(tuple(weight.shape), fan_in),
                None if bias is None else self.random.like(tuple(bias.shape), fan_in),
            )
        return _numpy(weight), None if bias is None else _numpy(bias)

    def _weights(self, op: Op, weight: Tensor, bias: Tensor | None) -> tuple[str, str]:
        weights, biases = self._arrays(weight, bias)
        biases = np.zeros(len(weights), np.float32) if biases is None else biases
        return self._weight(op, "weight", weights), self._weight(op, "bias", biases)

    def _weight(self, op: Op, suffix: str, array: Any) -> str:
        name = f"{self._name(op)}.{suffix}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _name(self, op: Op) -> str:
        return f"{self._tag(op.path)}{op.output}"

    def _tag(self, path: str) -> str:
        for index, position in enumerate(self.positions):
            if path == position.name or path.startswith(position.name + "."):
                return f"b{index}:"
        if self.positions:
            raise SpaceError(
                f"{path or 'the network itself'} computes something outside of every position of the space"
            )
        return ""

    def _node(
        self, op: Op, kind: str, extra: list[str], *, output: str = "", suffix: str = "", **attributes: Any
    ) -> str:
        name = self._name(op) + (f".{suffix}" if suffix else "")
        if not suffix:
            self.names[output or op.output] = name
        inputs = [self.names[source] for source in op.inputs]
        if kind == "Concat":
            attributes["axis"] = 1
        self.nodes.append(helper.make_node(kind, [*inputs, *extra], [name], name=name, **attributes))
        return name


_SIMPLE: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "hardswish": ("HardSwish", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "sigmoid": ("Sigmoid", {}),
    "add": ("Add", {}),
    "mul": ("Mul", {}),
    "concat": ("Concat", {}),
}


class _RandomWeights:
    """Normal numbers for graphs whose values do not matter: one pool, cut up, because drawing millions is slow."""

    def __init__(self) -> None:
        self._pool = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32)

    def like(self, shape: tuple[int, ...], fan_in: int) -> Array:
        return np.resize(self._pool, shape) * np.float32(math.sqrt(2 / fan_in))


def _numpy(tensor: Tensor | None, default: float = 0.0) -> Array:
    return np.float32(default) * np.ones(1, np.float32) if tensor is None else tensor.detach().cpu().float().numpy()
