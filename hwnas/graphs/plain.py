"""A module as a plain graph: operators with shapes, folded weights and the block each belongs to, for writers of files.

Every format of model file (`onnx.py`, `tflite.py`, ...) is written from this one form, in milliseconds, so that what is
profiled, exported and trained is one network. Batch normalisation is folded into the convolution before it, as every
runtime does. Each node's name begins with the tag of the block it belongs to, `b<position>:`, and its output tensor has
the same name: runtimes build the names of the kernels they fuse from either, so a measured kernel can be given back to
its block.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import SpaceError
from hwnas.space import Position
from hwnas.trace import Factor, Op, Shape, Trace, trace

Array = NDArray[Any]
Range = tuple[float, float]

_TAG = re.compile(r"\bb(\d+):")

# What an activation ranges over where nothing was measured; a profile does not depend on it.
_USUAL: Range = (-4.0, 4.0)
_BOUNDED: dict[str, Range] = {
    "relu": (0.0, 6.0),
    "relu6": (0.0, 6.0),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "hardswish": (-0.375, 6.0),
    "silu": (-0.2785, 6.0),
}
# These only choose or average their input's values, so every format lets both share one scale.
_KEEPING = {"max_pool", "avg_pool", "global_avg_pool", "flatten"}


def block_index(kernel_name: str) -> int | None:
    """The position that a runtime's kernel belongs to, from its name; None for kernels the runtime added itself."""
    match = _TAG.search(kernel_name)
    return int(match.group(1)) if match else None


@dataclass(frozen=True)
class Node:
    """One operator; `name` is also the name of its output tensor.

    kind        weights                                       attributes
    conv        weight (out, in / groups, h, w), bias (out,)  stride, padding, dilation (h, w each), groups, has_bias
    linear      weight (out, in), bias (out,)
    batch_norm  scale (channels,), shift (channels,)
    avg_pool, max_pool                                        kernel, stride, padding (h, w each), count_include_pad

    The others have neither: relu, relu6, hardswish, hardsigmoid, sigmoid, silu, add, mul, concat (of channels),
    global_avg_pool (keeps both axes), flatten (all but the batch). Weights are float32; `has_bias` is False for a
    convolution that never had one: its bias is zeros.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    weights: Mapping[str, Array] = field(default_factory=dict, compare=False)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The tensor that the node computes."""
        return self.name


@dataclass(frozen=True)
class Graph:
    """Operators in execution order; `shapes` (batch, channels, height, width or features) and `ranges` by tensor.

    In int8 files, the nodes of the names `in_float` compute in float all the same.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    output: str
    shapes: Mapping[str, Shape]
    ranges: Mapping[str, Range]
    in_float: frozenset[str] = frozenset()

    @property
    def batch(self) -> int:
        """Images of one inference."""
        return int(self.shapes[self.output][0])

    @property
    def readers(self) -> dict[str, int]:
        """Tensor -> how many nodes read it; the output has one reader more."""
        counts = {self.output: 1}
        for node in self.nodes:
            for name in node.inputs:
                counts[name] = counts.get(name, 0) + 1
        return counts


def plain_graph(
    module: nn.Module,
    input_shapes: Sequence[Shape],
    *,
    positions: Sequence[Position] = (),
    batch: int = 1,
    ranges: Mapping[str, Range] | None = None,
) -> Graph:
    """The module in evaluation mode as a graph; `input_shapes` without the batch.

    `ranges` are measured ones, by the tensor names of the module's trace (`ranges.py`). A module on the meta device
    gets random weights of a usual size (a profile does not depend on their values, as long as no activation is denormal
    or infinite). Raises SpaceError for an operator that no format knows, or one outside of every position.
    """
    traced = trace(module, input_shapes)
    if traced.output in traced.inputs:
        raise SpaceError(f"{type(module).__name__} computes nothing, so there is no graph to write")
    return traced_graph(traced, positions=positions, batch=batch, ranges=ranges)


def traced_graph(
    traced: Trace,
    *,
    positions: Sequence[Position] = (),
    batch: int = 1,
    ranges: Mapping[str, Range] | None = None,
) -> Graph:
    """The operators of a trace as `plain_graph` gives those of a module: one block's, say."""
    return _Builder(positions, batch, ranges or {}).build(traced)


@dataclass
class _Builder:
    positions: Sequence[Position]
    batch: int
    measured: Mapping[str, Range]
    nodes: list[Node] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # tensor of the trace -> tensor of the graph
    shapes: dict[str, Shape] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    random: _RandomWeights = field(default_factory=lambda: _RandomWeights())

    def build(self, traced: Trace) -> Graph:
        self.names = {name: name for name in traced.inputs}
        for name, shape in zip(traced.inputs, traced.input_shapes, strict=True):
            self.shapes[name] = (self.batch, *shape[1:])
            self.ranges[name] = self.measured.get(name, _USUAL)
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
                self._add(op, *self._conv(op, norm), result=norm.output)
            else:
                self._add(op, *self._content(op))
        return Graph(tuple(self.nodes), traced.inputs, self.names[traced.output], self.shapes, self.ranges)

    def _add(self, op: Op, weights: dict[str, Array], attributes: dict[str, Any], *, result: str = "") -> None:
        name = f"{self._tag(op.path)}{op.output}"
        inputs = tuple(self.names[source] for source in op.inputs)
        self.names[result or op.output] = name
        self.shapes[name] = (self.batch, *op.output_shape[1:])
        usual = self.ranges[inputs[0]] if op.kind in _KEEPING else _BOUNDED.get(op.kind, _USUAL)
        self.ranges[name] = self.measured.get(result or op.output, usual)
        # what `hwnas.trace.scale` computes
        self.nodes.append(Node("batch_norm" if op.kind == "scale" else op.kind, name, inputs, weights, attributes))

    def _content(self, op: Op) -> tuple[dict[str, Array], dict[str, Any]]:
        """Weights and attributes of an operator."""
        if op.kind == "conv":
            return self._conv(op, None)
        if op.kind == "linear":
            assert isinstance(op.module, nn.Linear)
            if len(op.output_shape) != 2:
                raise SpaceError(f"{op.path}: flatten before the linear layer, its input is {op.input_shapes[0]}")
            weight, bias = self._arrays(op.module.weight, op.module.bias)
            return {"weight": weight, "bias": np.zeros(len(weight), np.float32) if bias is None else bias}, {}
        if op.kind == "batch_norm":
            assert isinstance(op.module, nn.BatchNorm2d)
            return dict(zip(("scale", "shift"), self._norm(op.module), strict=True)), {}
        if op.kind == "scale":
            assert isinstance(op.module, Factor)
            value, channels = op.module.value, op.output_shape[1]
            factor = 0.5 if value.is_meta else float(value)
            return {"scale": np.full(channels, factor, np.float32), "shift": np.zeros(channels, np.float32)}, {}
        if op.kind in ("avg_pool", "max_pool"):
            assert isinstance(op.module, (nn.AvgPool2d, nn.MaxPool2d))
            attributes: dict[str, Any] = {
                "kernel": _pair(op.module.kernel_size),
                "stride": _pair(op.module.stride),
                "padding": _pair(op.module.padding),
            }
            if isinstance(op.module, nn.AvgPool2d):
                attributes["count_include_pad"] = op.module.count_include_pad
            return {}, attributes
        return {}, {}

    def _conv(self, op: Op, norm: Op | None) -> tuple[dict[str, Array], dict[str, Any]]:
        conv = op.module
        assert isinstance(conv, nn.Conv2d)
        weight, bias = self._arrays(conv.weight, conv.bias)
        if norm is not None:
            assert isinstance(norm.module, nn.BatchNorm2d)
            scale, shift = self._norm(norm.module)
            weight = weight * scale[:, None, None, None]
            bias = shift if bias is None else bias * scale + shift
        attributes = {
            "stride": _pair(conv.stride),
            "padding": _pair(conv.padding),
            "dilation": _pair(conv.dilation),
            "groups": conv.groups,
            "has_bias": bias is not None,
        }
        return {"weight": weight, "bias": np.zeros(len(weight), np.float32) if bias is None else bias}, attributes

    def _norm(self, norm: nn.BatchNorm2d) -> tuple[Array, Array]:
        """(channels,) factor and offset of a batch normalisation in inference."""
        assert norm.running_var is not None
        assert norm.running_mean is not None
        if norm.running_var.is_meta:
            return np.ones(norm.num_features, np.float32), self.random.like((norm.num_features,), 100)
        ones = np.ones(norm.num_features, np.float32)
        scale = (_numpy(norm.weight) if norm.affine else ones) / np.sqrt(_numpy(norm.running_var) + norm.eps)
        return scale, (_numpy(norm.bias) if norm.affine else 0 * ones) - _numpy(norm.running_mean) * scale

    def _arrays(self, weight: Tensor, bias: Tensor | None) -> tuple[Array, Array | None]:
        if weight.is_meta:
            fan_in = math.prod(weight.shape[1:])
            return (
                self.random.like(tuple(weight.shape), fan_in),
                None if bias is None else self.random.like(tuple(bias.shape), fan_in),
            )
        return _numpy(weight), None if bias is None else _numpy(bias)

    def _tag(self, path: str) -> str:
        for index, position in enumerate(self.positions):
            if path == position.name or path.startswith(position.name + "."):
                return f"b{index}:"
        if self.positions:
            raise SpaceError(
                f"{path or 'the network itself'} computes something outside of every position of the space"
            )
        return ""


class _RandomWeights:
    """Normal numbers for graphs whose values do not matter: one pool, cut up, because drawing millions is slow.

    Every tensor begins elsewhere in it: OpenVINO computes equal layers of one tensor, equal weights included, once.
    """

    def __init__(self) -> None:
        self._pool = np.random.default_rng(0).standard_normal(1 << 16, dtype=np.float32)
        self._begin = 0

    def like(self, shape: tuple[int, ...], fan_in: int) -> Array:
        self._begin += 4099  # a prime, so that no two of the first 65,536 begin at one place
        return np.resize(np.roll(self._pool, -self._begin), shape) * np.float32(math.sqrt(2 / fan_in))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().float().numpy()
