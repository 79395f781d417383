"""A plain graph as ncnn's two files, with the layers that ncnn's converter pnnx and its optimiser make of the module.

The text `NAME.ncnn.param` lists layers, one a line, `NAME.ncnn.bin` holds their weights in the same order. ncnn has no
batch, and what global pooling leaves is one-dimensional ("a vector" here), so 1x1 convolutions of it are InnerProduct
layers. Activations are fused into the layer before them where ncnn can; one that pnnx leaves alone, hard-swish after a
convolution, is fused as ncnn's optimiser does. Like in pnnx, nothing without weights is computed twice. fp16 files hold
half weights; int8 files hold int8 weights with a scale a channel and the activations' scales, as ncnn's ncnn2int8
writes them: scale = 127 / largest magnitude.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import SpaceError
from hwnas.graphs.plain import Array, Graph, Node
from hwprof.errors import TargetError
from hwprof.runtimes.ncnn_files import MAGIC, sealed, weights_path

Params = dict[int, Any]  # numbers by ncnn's keys, floats with a point, tuples as arrays

# Tags before weights that are not float32, and activations that convolutions and linear layers do themselves.
HALF_TAG, INT8_TAG = 0x01306B47, 0x000D4B38
FUSED: dict[str, tuple[int, tuple[float, ...]]] = {
    "relu": (1, ()),
    "relu6": (3, (0.0, 6.0)),
    "sigmoid": (4, ()),
    "hardswish": (6, (1 / 6, 0.5)),
}
ALONE: dict[str, tuple[str, Params]] = {
    "relu": ("ReLU", {}),
    "relu6": ("Clip", {0: 0.0, 1: 6.0}),
    "sigmoid": ("Sigmoid", {}),
    "hardswish": ("HardSwish", {0: 1 / 6, 1: 0.5}),
    "hardsigmoid": ("HardSigmoid", {0: 1 / 6, 1: 0.5}),
    "silu": ("Swish", {}),
}
FUSING = {"Convolution", "ConvolutionDepthWise", "InnerProduct"}
ACTIVATION, ACTIVATION_PARAMS, INT8_SCALES = 9, 10, 8
FEATURE_MASK, NO_BF16 = 31, 4  # what a layer must not use
REQUANTISED = 100  # added to INT8_SCALES: the layer's output is int8


def write(graph: Graph, path: Path, precision: str) -> None:
    """Write the graph to `path` and the weights beside it.

    Raises TargetError for a batch, SpaceError for an operator without a form in ncnn.
    """
    text, weights = ncnn_model(graph, precision)
    weights_path(path).write_bytes(weights)
    path.write_text(sealed(text, weights), encoding="utf-8")


def ncnn_model(graph: Graph, precision: str = "fp32") -> tuple[str, bytes]:
    """The contents of the two files."""
    if graph.batch != 1:
        raise TargetError(f"ncnn runs one image at a time: target.batch must be 1, got {graph.batch}")
    writer = _Writer(graph, precision)
    for node in _needed(graph):
        writer.add(node)
    writer.finish()
    layers = _with_splits(writer.layers)
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = [MAGIC, f"{len(layers)} {blobs}", *(layer.line() for layer in layers)]
    return "\n".join(lines) + "\n", b"".join(layer.weights for layer in layers)


@dataclass
class _Layer:
    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    params: Params = field(default_factory=dict)
    weights: bytes = b""

    def line(self) -> str:
        params = (f"{_key(key, value)}={_text(value)}" for key, value in self.params.items())
        counts = f"{len(self.inputs)} {len(self.outputs)}"
        return " ".join([self.kind, self.name, counts, *self.inputs, *self.outputs, *params])


@dataclass
class _Writer:
    graph: Graph
    precision: str
    layers: list[_Layer] = field(default_factory=list)
    makers: dict[str, _Layer] = field(default_factory=dict)  # blob -> the layer that computes it
    blobs: dict[str, str] = field(default_factory=dict)  # tensor of the graph -> ncnn's blob
    vectors: set[str] = field(default_factory=set)  # blobs of one dimension that stand for (channels, 1, 1)
    computed: dict[Any, str] = field(default_factory=dict)  # what is computed without weights -> its blob

    def __post_init__(self) -> None:
        self.readers = Counter(name for node in _needed(self.graph) for name in node.inputs)
        self.readers[self.graph.output] += 1
        for name in self.graph.inputs:
            self.blobs[name] = name
            extents = self.graph.shapes[name][:0:-1]  # width, height, channels
            self._append(_Layer("Input", name, [], [name], dict(enumerate(extents))))

    def add(self, node: Node) -> None:
        blobs = [self.blobs[name] for name in node.inputs]
        same = None if node.weights else (node.kind, *blobs, *sorted(node.attributes.items()))
        if same in self.computed:
            self.blobs[node.output] = self.computed[same]
        elif not (node.kind in FUSED and self._fused(node)):
            self._add(node, blobs)
            if same:
                self.computed[same] = self.blobs[node.output]

    def _add(self, node: Node, blobs: list[str]) -> None:
        if node.kind == "conv":
            self._conv(node)
        elif node.kind == "linear":
            self._inner_product(node, node.weights["weight"], True)
        elif node.kind == "batch_norm":
            scale, shift = node.weights["scale"], node.weights["shift"]
            arrays = (scale, np.zeros_like(scale), np.ones_like(scale), shift)  # scale, mean, variance, shift
            self._layer(node, "BatchNorm", blobs, {0: len(scale), 1: 0.0}, b"".join(map(_plain, arrays)))
            self._like(node, blobs)
        elif node.kind in ALONE:
            kind, params = ALONE[node.kind]
            self._layer(node, kind, blobs, params)
            self._like(node, blobs)
        elif node.kind in ("add", "mul"):
            self._binary(node)
        elif node.kind == "concat":
            if not self.vectors.issuperset(blobs):
                blobs = [self._image(name) for name in node.inputs]
            self._layer(node, "Concat", blobs, {0: 0})
            self._like(node, blobs)
        elif node.kind == "global_avg_pool":
            self._layer(node, "Pooling", [self._image(node.inputs[0])], {0: 1, 4: 1})
            self.vectors.add(node.output)
        elif node.kind in ("avg_pool", "max_pool"):
            self._pool(node)
        elif node.kind == "flatten":
            if blobs[0] in self.vectors or len(self.graph.shapes[node.inputs[0]]) == 2:
                self.blobs[node.output] = blobs[0]
            else:
                self._layer(node, "Flatten", blobs, {})
        else:
            raise SpaceError(f"{node.name}: no ncnn form of {node.kind} is known; add it to hwnas/graphs/ncnn.py")

    def finish(self) -> None:
        """Give the output the module's number of dimensions, and int8 layers that follow each other int8 between."""
        if len(self.graph.shapes[self.graph.output]) == 4:
            self._image(self.graph.output)
        readers: dict[str, list[_Layer]] = {}
        for layer in self.layers:
            for blob in layer.inputs:
                readers.setdefault(blob, []).append(layer)
        convolutions = [layer for layer in self.layers if INT8_SCALES in layer.params and layer.kind != "InnerProduct"]
        for layer in convolutions:
            following = readers.get(layer.outputs[0], [])
            if following and all(any(reader is each for each in convolutions) for reader in following):
                layer.params[INT8_SCALES] += REQUANTISED
                layer.weights += _plain(self._scale(layer.outputs[0]))

    def _conv(self, node: Node) -> None:
        weight, attributes = node.weights["weight"], node.attributes
        outputs, _, height, width = weight.shape
        groups, padding, stride, dilation = (attributes[name] for name in ("groups", "padding", "stride", "dilation"))
        pointwise = (height, width) == (1, 1) and groups == 1 and padding == (0, 0)
        if pointwise and self.blobs[node.inputs[0]] in self.vectors:
            self._inner_product(node, weight.reshape(outputs, -1), attributes["has_bias"])
            self.vectors.add(node.output)
            return
        params: Params = {
            **{0: outputs, 1: width, 11: height, 2: dilation[1], 12: dilation[0], 3: stride[1], 13: stride[0]},
            **{4: padding[1], 14: padding[0], 5: int(attributes["has_bias"]), 6: weight.size},
        }
        kind = "Convolution"
        precision = self.precision
        if groups > 1:
            kind = "ConvolutionDepthWise"
            params[7] = groups
        if groups > 1 and weight.shape[:2] != (groups, 1):
            # Neither depthwise nor dense: ncnn 1.0.20261020 on x86 computes garbage of these in bf16 and in int8.
            if precision == "bf16":
                params[FEATURE_MASK] = NO_BF16
            precision = "fp16" if precision == "int8" else precision
        # ncnn computes 3x3 convolutions of stride 1 by Winograd's transform, which overflows with weights of 8 bits.
        winograd = groups == 1 and (height, width) == (3, 3) and stride == dilation == (1, 1)
        weights = self._weights(node, precision, 31 if winograd else 127, params)
        self._layer(node, kind, [self._image(node.inputs[0])], params, weights)

    def _inner_product(self, node: Node, weight: Array, biased: bool) -> None:
        params: Params = {0: len(weight), 1: int(biased), 2: weight.size}
        weights = self._weights(node, self.precision, 127, params)
        self._layer(node, "InnerProduct", [self.blobs[node.inputs[0]]], params, weights)

    def _weights(self, node: Node, precision: str, largest: int, params: Params) -> bytes:
        """Weights and bias as they are stored; int8 ones with their scales, which `params` then says."""
        weight = node.weights["weight"]
        bias = _plain(node.weights["bias"]) if node.attributes.get("has_bias", True) else b""
        if precision == "int8" and node.name in self.graph.in_float:
            precision = "fp16"  # what ncnn computes with beside int8
        if precision == "fp16":
            return _tagged(HALF_TAG, weight.astype("<f2")) + bias
        if precision != "int8":
            return _tagged(0, weight.astype("<f4")) + bias
        rows = weight.reshape(len(weight), -1)
        peaks = np.abs(rows).max(axis=1)
        scale = (largest / np.where(peaks > 0, peaks, largest)).astype(np.float32)
        params[INT8_SCALES] = 1 if 7 in params else 2
        whole = np.clip(np.rint(rows * scale[:, None]), -127, 127).astype(np.int8)
        return _tagged(INT8_TAG, whole) + bias + _plain(scale) + _plain(self._scale(node.inputs[0]))

    def _scale(self, tensor: str) -> Array:
        largest = max(map(abs, self.graph.ranges[tensor]))
        return np.array([127 / largest if largest > 0 else 1], np.float32)

    def _binary(self, node: Node) -> None:
        shapes = [self.graph.shapes[name] for name in node.inputs]
        extended = {shape[2:] for shape in shapes} - {(1, 1)}
        if len({(len(shape), shape[1]) for shape in shapes}) > 1 or len(extended) > 1:
            raise SpaceError(f"{node.name}: ncnn does not {node.kind} tensors of the shapes {shapes} as torch does")
        blobs = [self.blobs[name] for name in node.inputs]
        self._layer(node, "BinaryOp", blobs, {0: 2 if node.kind == "mul" else 0})
        self._like(node, blobs)

    def _pool(self, node: Node) -> None:
        kernel, stride, padding = (node.attributes[name] for name in ("kernel", "stride", "padding"))
        params: Params = {
            **{0: int(node.kind == "avg_pool"), 1: kernel[1], 11: kernel[0], 2: stride[1], 12: stride[0]},
            **{3: padding[1], 13: padding[0], 5: 1},  # 5=1: only whole windows, as torch does
        }
        if node.kind == "avg_pool":
            params[6] = int(node.attributes["count_include_pad"])
        self._layer(node, "Pooling", [self._image(node.inputs[0])], params)

    def _fused(self, node: Node) -> bool:
        """Fuse an activation into the layer that computes its input, if nobody else reads that."""
        tensor = node.inputs[0]
        layer = self.makers[self.blobs[tensor]]
        alone = self.blobs[tensor] == tensor and self.readers[tensor] == 1
        if not alone or layer.kind not in FUSING or ACTIVATION in layer.params:
            return False
        layer.params[ACTIVATION], values = FUSED[node.kind]
        if values:
            layer.params[ACTIVATION_PARAMS] = values
        layer.outputs = [node.output]
        self.makers[node.output] = layer
        self.blobs[node.output] = node.output
        self._like(node, [tensor])
        return True

    def _image(self, tensor: str) -> str:
        """The blob of a tensor, given its three dimensions back if it is a vector."""
        blob = self.blobs[tensor]
        if blob not in self.vectors:
            return blob
        image = f"{blob}.image"
        if image not in self.makers:
            self._append(_Layer("Reshape", image, [blob], [image], {0: 1, 1: 1, 2: self.graph.shapes[tensor][1]}))
        return image

    def _like(self, node: Node, blobs: list[str]) -> None:
        """The output is a vector if all these inputs are."""
        if self.vectors.issuperset(blobs):
            self.vectors.add(node.output)

    def _layer(self, node: Node, kind: str, blobs: list[str], params: Params, weights: bytes = b"") -> None:
        self._append(_Layer(kind, node.name, blobs, [node.output], dict(params), weights))
        self.blobs[node.output] = node.output

    def _append(self, layer: _Layer) -> None:
        self.layers.append(layer)
        self.makers[layer.outputs[0]] = layer


def _needed(graph: Graph) -> list[Node]:
    """The nodes that the output depends on: what nobody reads would be an output of its own in ncnn."""
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
    return [node for node in graph.nodes if node.output in needed]


def _with_splits(layers: list[_Layer]) -> list[_Layer]:
    """The layers with a Split behind each that several read: in ncnn a blob has one reader."""
    readers = Counter(blob for layer in layers for blob in layer.inputs)
    copies: dict[str, list[str]] = {}
    result: list[_Layer] = []
    for layer in layers:
        layer.inputs = [copies[blob].pop() if blob in copies else blob for blob in layer.inputs]
        result.append(layer)
        (blob,) = layer.outputs
        if readers[blob] > 1:
            parts = [f"{blob}.{number}" for number in range(readers[blob])]
            result.append(_Layer("Split", f"{blob}.split", [blob], parts))
            copies[blob] = parts[::-1]
    return result


def _tagged(tag: int, array: Array) -> bytes:
    """Weights after the tag that says how they are stored, filled up to four bytes."""
    data = array.tobytes()
    return tag.to_bytes(4, "little") + data + bytes(-len(data) % 4)


def _plain(array: Array) -> bytes:
    return array.astype("<f4").tobytes()


def _key(key: int, value: Any) -> int:
    return -23300 - key if isinstance(value, tuple) else key


def _text(value: Any) -> str:
    """A number as older versions of ncnn read it: 15 characters at most, integers are those without a point."""
    if isinstance(value, tuple):
        return ",".join([str(len(value)), *map(_text, value)])
    text = f"{value:.9g}"
    return f"{text}.0" if isinstance(value, float) and text.lstrip("-").isdigit() else text
