"""A plain graph as a LiteRT (TensorFlow Lite) file, with the operators that TensorFlow's converter writes.

Everything is NHWC, as in files for devices: an input of the graph (batch, channels, height, width) becomes one of
(batch, height, width, channels), and so does an output with four axes. Names of tensors carry the tags of the blocks;
one that an activation was fused into is called "convolution;activation", so that it belongs to the convolution's block.

fp32    as in the graph. Only a depthwise convolution of more than 25 taps becomes the sum of smaller ones: XNNPACK
        (LiteRT 2.3) has no kernel for it, and took 11 to 24 times as long for 7x7 as for 5x5 on x86, for the sum 3.
fp16    weights are halves, each made float again by a DEQUANTIZE, and the file says that computing in halves is fine
        ("reduced_precision_support"): XNNPACK then does so where the CPU can (ARM from v8.2 on). Elsewhere, on x86 for
        one, it unpacks the weights once, when it loads the file, and computes in fp32, in the time of fp32.
int8    weights, activations and sums are integers; inputs and output stay float, behind a QUANTIZE and a DEQUANTIZE.
        XNNPACK has no int8 HARD_SWISH, AVERAGE_POOL_2D, RELU or RELU6: written as such, each cuts the graph into pieces
        and runs a slow kernel; on x86, stacks of 1x1 convolutions took 1.1 to 15 times as long as in fp32 with them,
        and 0.2 to 0.6 times in the forms below (pools of few channels: 1.5). An activation that no operator takes in
        becomes a QUANTIZE to a scale that starts at zero, which saturates where it would. Hard-swish, average pooling
        and the sums above are computed in float between a DEQUANTIZE and a QUANTIZE; XNNPACK makes of hard-swish
        between these one table to look up. Nodes of `graph.in_float` are written as in fp32, between the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

from hwnas.errors import SpaceError
from hwnas.graphs.plain import Graph, Node
from hwnas.graphs.tflite_file import ModelFile, Scale, Tensor
from hwnas.graphs.tflite_operators import FORMS, is_wide
from hwnas.graphs.tflite_quantise import activation_scales
from hwnas.graphs.tflite_step import NO_ACTIVATION, Step
from hwnas.trace import Shape

# The first version of TensorFlow Lite that runs all that is written in each precision.
_OLDEST_RUNTIME = {"fp32": b"2.9.0", "fp16": b"2.9.0", "int8": b"2.17.0"}
_ACTIVATIONS = {"relu": schema.ActivationFunctionType.RELU, "relu6": schema.ActivationFunctionType.RELU6}
_TAKE_ACTIVATIONS = {"conv", "linear", "batch_norm", "add", "mul"}
_NEVER_NEGATIVE = {"relu", "relu6", "sigmoid", "hardsigmoid"}
_FLOAT_IN_INT8 = {"hardswish", "avg_pool"}


def write(graph: Graph, path: Path, precision: str) -> None:
    """Write the graph to a file. Raises SpaceError for a precision or an operator without a form in the format."""
    path.write_bytes(tflite_model(graph, precision))


def tflite_model(graph: Graph, precision: str = "fp32") -> bytes:
    """The bytes of the file, the same for the same graph. Inputs and output are float32."""
    if precision not in _OLDEST_RUNTIME:
        raise SpaceError(f"no LiteRT form of precision {precision!r} is known; there are {', '.join(_OLDEST_RUNTIME)}")
    file = ModelFile({"min_runtime_version": _OLDEST_RUNTIME[precision].ljust(16, b"\0")})
    if precision == "fp16":
        file.metadata["reduced_precision_support"] = b"fp16accfp16"
    scales = activation_scales(graph) if precision == "int8" else {}
    return _Writer(graph, file, scales, halves=precision == "fp16").content()


@dataclass
class _Writer:
    graph: Graph
    file: ModelFile
    scales: dict[str, Scale]  # empty in float
    halves: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)
    converted: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # (name, type) -> it in that type

    def content(self) -> bytes:
        inputs = [self.file.tensor(name, self._shape(name), "float32") for name in self.graph.inputs]
        self.tensors = dict(zip(self.graph.inputs, inputs, strict=True))
        activations = self._fused_activations()
        fused = {activation.name for activation in activations.values()}
        for node in self.graph.nodes:
            if node.name not in fused:
                self._add(node, activations.get(node.name))
        return self.file.content(inputs, self._read(self.graph.output, "float32"))

    def _fused_activations(self) -> dict[str, Node]:
        """Name of a node -> the activation that its operator computes too: the only reader of its output."""
        kinds, readers, in_float = self._kinds, self.graph.readers, self.graph.in_float
        return {
            node.inputs[0]: node
            for node in self.graph.nodes
            if node.kind in _ACTIVATIONS
            and kinds.get(node.inputs[0]) in _TAKE_ACTIVATIONS
            and readers[node.inputs[0]] == 1
            and (node.name in in_float) == (node.inputs[0] in in_float)
        }

    @property
    def _kinds(self) -> dict[str, str]:
        return {node.output: node.kind for node in self.graph.nodes}

    def _add(self, node: Node, fused: Node | None) -> None:
        if node.kind not in FORMS:
            raise SpaceError(
                f"{node.name}: no LiteRT form of {node.kind} is known; add it to hwnas/graphs/tflite_operators.py"
            )
        result = fused or node
        scale = None if node.name in self.graph.in_float else self.scales.get(result.output)
        dtype = "float32" if scale is None else "int8"
        step = Step(
            file=self.file,
            node=node,
            inputs=tuple(self._read(source, dtype) for source in node.inputs),
            name=f"{node.name};{fused.name}" if fused else node.name,
            shape=self._shape(node.output),
            scale=scale,
            activation=_ACTIVATIONS[fused.kind] if fused else NO_ACTIVATION,
            halves=self.halves,
            negative=self._kinds.get(node.inputs[0]) not in _NEVER_NEGATIVE,
        )
        if step.scale is not None and (node.kind in _FLOAT_IN_INT8 or is_wide(node)):
            inputs = tuple(self.file.as_float(tensor, f"{step.name}/input") for tensor in step.inputs)
            tensor = FORMS[node.kind](replace(step, inputs=inputs, name=f"{step.name}/float32", scale=None))
            tensor = self.file.quantised(tensor, step.name, step.scale)
        else:
            tensor = FORMS[node.kind](step)
        self.tensors[result.output] = tensor

    def _read(self, name: str, dtype: str) -> Tensor:
        """A tensor of the graph in that type, converted once for all its readers."""
        tensor = self.tensors[name]
        if tensor.dtype == dtype:
            return tensor
        if (name, dtype) not in self.converted:
            self.converted[name, dtype] = (
                self.file.as_float(tensor, f"{name}/{dtype}")
                if dtype == "float32"
                else self.file.quantised(tensor, f"{name}/{dtype}", self.scales[name])
            )
        return self.converted[name, dtype]

    def _shape(self, name: str) -> Shape:
        shape = self.graph.shapes[name]
        if len(shape) == 4:
            batch, channels, height, width = shape
            return batch, height, width, channels
        if len(shape) == 2:
            return shape
        raise SpaceError(f"{name}: LiteRT files are written of tensors with 2 or 4 axes, this one is {shape}")
