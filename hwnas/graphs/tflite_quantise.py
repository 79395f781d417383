"""Int8 as LiteRT computes it: asymmetric activations of one scale per tensor, symmetric weights of one per channel.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018,
equations (1) and (4), with the signed numbers and the per-channel weights of the LiteRT 8-bit quantisation
specification: weights in [-127, 127], biases int32 of the scale (input's scale * weight's scale).
"""

from __future__ import annotations

import numpy as np

from hwnas.graphs.plain import Graph
from hwnas.graphs.tflite_file import Array, Scale

# What a logistic function is written with, whatever it was seen to give: the specification fixes it.
SIGMOID = Scale(np.float32(1 / 256), -128)
# These cannot change the scale: their kernels only copy and compare int8 numbers.
_COPYING = {"concat", "max_pool", "flatten"}
# A bias in int32 must fit beside the sum of products that it starts.
_BIAS_LIMIT = 2**30
# The smallest part of the output's scale that one step of a product may mean: far below it, requantising cannot shift.
_SMALLEST_STEP = 2.0**-24


def activation_scales(graph: Graph) -> dict[str, Scale]:
    """Tensor -> its scale, from the graph's ranges; tensors that share numbers get the hull of their ranges."""
    groups: dict[str, set[str]] = {name: {name} for name in graph.ranges}
    for node in graph.nodes:
        if node.kind in _COPYING and node.name not in graph.in_float:
            merged = set().union(*(groups[name] for name in (*node.inputs, node.output)))
            groups.update(dict.fromkeys(merged, merged))
    scales = {}
    for name, group in groups.items():
        limits = [graph.ranges[member] for member in group]
        scales[name] = range_scale(min(low for low, _ in limits), max(high for _, high in limits))
    return scales


def range_scale(low: float, high: float) -> Scale:
    """The scale whose 256 numbers span the range and zero; zero itself is one of them."""
    low, high = min(low, 0.0), max(high, 0.0)
    # A tensor that is always zero is so on any scale; one of a usual size keeps the ratios between scales usual.
    scale = np.float32((high - low) / 255 or 1 / 255)
    return Scale(scale, int(np.clip(round(-128 - low / float(scale)), -128, 127)))


def positive_constant(value: float) -> tuple[Array, Scale]:
    """One number above zero as int8, exactly: the largest number of its own scale."""
    return np.array([127], np.int8), Scale(np.float32(value / 127))


def int8_weights(weight: Array, bias: Array, axis: int, source: Scale, result: Scale) -> tuple[Array, Scale, Array]:
    """Weights as int8 with their scales, one per index of `axis` (the output channels), and the bias as int32.

    `source` and `result` are the scales of the operator's input and output.
    """
    others = tuple(each for each in range(weight.ndim) if each != axis)
    scales = np.maximum.reduce(
        [
            np.abs(weight).max(axis=others) / 127,
            np.abs(bias) / (source.scale * _BIAS_LIMIT),
            np.full(len(bias), _SMALLEST_STEP * result.scale / source.scale),
        ]
    ).astype(np.float32)
    integers = np.clip(np.round(weight / np.expand_dims(scales, others)), -127, 127).astype(np.int8)
    sums = np.round(bias / (scales.astype(np.float64) * float(source.scale))).astype(np.int32)
    return integers, Scale(scales, 0, axis), sums
