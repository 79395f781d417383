"""The file format of LiteRT, written through the schema that its package brings: tensors, operators, one subgraph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from hwnas.trace import Shape

Array = NDArray[Any]

# What the format asks of constants, so that vector instructions can load them out of the mapped file.
_ALIGNMENT = 16
_IDENTIFIER = b"TFL3"
_TYPES = {"float32": "FLOAT32", "float16": "FLOAT16", "int8": "INT8", "int32": "INT32"}
# operator -> its version for the type of its first input; else 1 for float32 and 2 for int8
_VERSIONS = {
    "CONV_2D": {"int8": 3},
    "DEPTHWISE_CONV_2D": {"float32": 2, "int8": 3},
    "DEQUANTIZE": {"float16": 3},
    "FULLY_CONNECTED": {"int8": 12},
    "HARD_SWISH": {"int8": 1},
    "RESHAPE": {"int8": 1},
}
_DEFAULT_VERSIONS = {"float32": 1, "int8": 2}


@dataclass(frozen=True)
class Scale:
    """How int8 numbers stand for real ones: real = scale * (int8 - zero). One scale, or one per index of `axis`."""

    scale: Array | np.float32
    zero: int = 0
    axis: int = 0


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file; `number` is its index there. `scale` is that of an int8 tensor."""

    number: int
    shape: Shape
    dtype: str
    scale: Scale | None


@dataclass
class ModelFile:
    """A model with one subgraph, filled operator by operator."""

    metadata: dict[str, bytes] = field(default_factory=dict)
    _tensors: list[Any] = field(default_factory=list)
    _buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])  # the first one is always empty
    _operators: list[Any] = field(default_factory=list)
    _codes: dict[tuple[int, int], int] = field(default_factory=dict)  # (operator, version) -> index

    def tensor(self, name: str, shape: Shape, dtype: str, scale: Scale | None = None) -> Tensor:
        """A tensor that is an input, or that an operator computes."""
        made = schema.TensorT()
        made.name, made.shape, made.hasRank = name, [*shape], True
        made.type = getattr(schema.TensorType, _TYPES[dtype])
        if scale is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = np.atleast_1d(np.asarray(scale.scale, np.float32))
            made.quantization.zeroPoint = np.full(made.quantization.scale.shape, scale.zero, np.int64)
            made.quantization.quantizedDimension = scale.axis
        self._tensors.append(made)
        return Tensor(len(self._tensors) - 1, tuple(shape), dtype, scale)

    def constant(self, name: str, array: Array, scale: Scale | None = None) -> Tensor:
        """A tensor with its values in the file."""
        tensor = self.tensor(name, array.shape, array.dtype.name, scale)
        self._tensors[tensor.number].buffer = len(self._buffers)
        self._buffers.append(_Buffer(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()))
        return tensor

    def operator(
        self, kind: str, inputs: Sequence[Tensor], output: Tensor, options: Any = None, *, version: int | None = None
    ) -> Tensor:
        """Append an operator; `kind` as in the schema ("CONV_2D"), `options` one of its tables; the output."""
        dtype = inputs[0].dtype
        code = getattr(schema.BuiltinOperator, kind)
        version = version or {**_DEFAULT_VERSIONS, **_VERSIONS.get(kind, {})}[dtype]
        made = schema.OperatorT()
        made.opcodeIndex = self._codes.setdefault((code, version), len(self._codes))
        made.inputs, made.outputs = [tensor.number for tensor in inputs], [output.number]
        if options is not None:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            made.builtinOptions = options
        self._operators.append(made)
        return output

    def quantised(self, source: Tensor, name: str, scale: Scale) -> Tensor:
        """A float or int8 tensor as int8 of that scale; what is beyond it becomes its first or last number."""
        return self.operator("QUANTIZE", [source], self.tensor(name, source.shape, "int8", scale))

    def as_float(self, source: Tensor, name: str) -> Tensor:
        """The tensor itself if it is float32, else a float32 one with its values."""
        if source.dtype == "float32":
            return source
        return self.operator("DEQUANTIZE", [source], self.tensor(name, source.shape, "float32"))

    def content(self, inputs: Sequence[Tensor], output: Tensor) -> bytes:
        """The bytes of the file: the same for the same operators."""
        subgraph = schema.SubGraphT()
        subgraph.name, subgraph.tensors, subgraph.operators = "main", self._tensors, self._operators
        subgraph.inputs, subgraph.outputs = [tensor.number for tensor in inputs], [output.number]
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = [self._named(tensor) for tensor in inputs], [self._named(output)]
        model = schema.ModelT()
        model.version, model.description, model.subgraphs, model.signatureDefs = 3, "hwnas", [subgraph], [signature]
        model.operatorCodes = [_operator_code(code, version) for code, version in self._codes]
        model.buffers, model.metadata = [*self._buffers], []
        for name, value in self.metadata.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, len(model.buffers)
            model.metadata.append(entry)
            model.buffers.append(_Buffer(value))
        builder = flatbuffers.Builder(1024 + sum(len(buffer.data or b"") + 64 for buffer in model.buffers))
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def _named(self, tensor: Tensor) -> Any:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = self._tensors[tensor.number].name, tensor.number
        return entry


class _Buffer(schema.BufferT):  # type: ignore[misc]
    """Constant data, aligned as the schema asks; the code generated from it would align to single bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data=data)

    def Pack(self, builder: Any) -> Any:
        builder.StartVector(1, len(self.data), _ALIGNMENT)
        builder.head -= len(self.data)
        builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


def _operator_code(code: int, version: int) -> Any:
    made = schema.OperatorCodeT()
    # Old runtimes read the deprecated field; it ends at 127, and none of the operators written here is newer.
    made.deprecatedBuiltinCode = made.builtinCode = code
    made.version = version
    return made
