"""ONNX files that anybody may have written: read only if they are what they say, complete in themselves and not absurd.

A file is refused that reads other files (external data), whose tensors do not hold what their shapes say or are of
absurd size, whose nodes are too many, nested too deeply or no order (a cycle), and of course one that is no ONNX.
Nothing of it is computed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Iterable, Iterator

import onnx

from hwprof.errors import MeasurementError

LARGEST_BYTES = 2**30
LARGEST_TENSOR = 2**28  # elements, stored or declared
MOST_NODES = 100_000  # of all graphs and functions together
MOST_AXES = 16
LONGEST_NAME = 1000
DEEPEST = 8  # graphs inside of graphs

# data type of a tensor -> bits of an element, where it has a fixed number
_BITS = {
    **dict.fromkeys(("UINT2", "INT2"), 2),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
    **dict.fromkeys(("UINT8", "INT8", "BOOL"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("UINT16", "INT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")

Graph = Any
Tensor = Any


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in a file. Raises MeasurementError, saying what is wrong with it."""
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise _Refused(f"it has {size / 2**20:.0f} MiB, at most {LARGEST_BYTES / 2**20:.0f} MiB are read")
        model = onnx.load_model_from_string(path.read_bytes())
        _check(model)
    except _Refused as refused:
        raise MeasurementError(
            f"{path.name} is refused: {refused}; take the file from where you trust, or export the network again"
        ) from None
    except Exception as error:  # of the file system, and of protobuf, which has several
        raise MeasurementError(f"{path.name} is no ONNX file: {error}; export the network again") from error
    if not model.graph.node:  # an empty file is an empty message, too
        raise MeasurementError(f"{path.name} holds no network; export it again")
    return model


class _Refused(Exception):
    """Why a file is not used."""


def _check(model: onnx.ModelProto) -> None:
    if model.training_info:
        raise _Refused("it holds graphs for training, which no inference needs")
    # a graph or function, and the names that it may read from the graphs around it
    waiting: list[tuple[Graph, tuple[set[str], ...]]] = [(graph, ()) for graph in (model.graph, *model.functions)]
    nodes = 0
    while waiting:
        graph, around = waiting.pop()
        nodes += 1 + len(graph.node)
        if nodes > MOST_NODES:
            raise _Refused(f"it has more than {MOST_NODES} nodes")
        if len(around) >= DEEPEST:
            raise _Refused(f"its graphs are nested more than {DEEPEST} deep")
        own = _given(graph) if isinstance(graph, onnx.GraphProto) else set(graph.input)
        _require_order(graph.node, own, around, _short(graph.name))
        for tensor in _held(graph.node, "t", "tensors"):
            _check_tensor(tensor)
        for sparse in _held(graph.node, "sparse_tensor", "sparse_tensors"):
            _check_sparse(sparse)
        waiting += [(inner, (*around, own)) for inner in _held(graph.node, "g", "graphs")]


def _given(graph: Graph) -> set[str]:
    """The names of a graph's inputs and weights, all of them checked."""
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _check_sparse(sparse)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _require_size([axis.dim_value for axis in value.type.tensor_type.shape.dim], _short(value.name))
    given = {value.name for value in (*graph.input, *graph.initializer)}
    return given | {sparse.values.name for sparse in graph.sparse_initializer}


def _held(nodes: Iterable[Any], one: str, several: str) -> Iterator[Any]:
    """What the attributes of nodes hold in a field and in its plural."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField(one):
                yield getattr(attribute, one)
            yield from getattr(attribute, several)


def _require_order(nodes: Iterable[Any], own: set[str], around: tuple[set[str], ...], where: str) -> None:
    """Add what nodes make to a graph's own names. Raise _Refused unless each reads what was known, and makes new."""
    for node in nodes:
        who = f"in the graph {where}, {_short(node.name or node.op_type)}"
        if max(map(len, (node.name, *node.output))) > LONGEST_NAME:
            raise _Refused(f"{who} has a name of more than {LONGEST_NAME} characters")
        for name in filter(None, node.input):
            if name not in own and not any(name in names for names in around):
                raise _Refused(f"{who} reads {_short(name)}, which nothing before it computes: a cycle, or a cut file")
        for name in filter(None, node.output):
            if name in own:
                raise _Refused(f"{who} makes {_short(name)}, which is there already")
            own.add(name)


def _check_tensor(tensor: Tensor) -> None:
    """Raise _Refused unless the tensor holds, itself, exactly what its shape says."""
    name = _short(tensor.name)
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        raise _Refused(f"the values of {name} are in another file ({_short(place)}), which is not read")
    elements = _require_size(tensor.dims, name)
    kinds = onnx.TensorProto.DataType
    kind = kinds.Name(tensor.data_type) if tensor.data_type in kinds.values() else str(tensor.data_type)
    if tensor.HasField("segment") or kind not in (*_BITS, "STRING"):
        raise _Refused(f"{name} is a part of a tensor, or of the unknown data type {kind}")
    raw, numbers = len(tensor.raw_data), [len(getattr(tensor, field)) for field in _FIELDS]
    packed = math.ceil(elements * _BITS.get(kind, 0) / 8)
    if tensor.HasField("raw_data"):
        whole = kind != "STRING" and raw == packed and not any(numbers)
    else:
        expected = packed if _BITS.get(kind, 8) < 8 else elements * (2 if kind.startswith("COMPLEX") else 1)
        whole = sum(numbers) == max(numbers) == expected
    if not whole:
        raise _Refused(
            f"{name} is {kind} of shape {list(tensor.dims)} and holds {raw} bytes and {sum(numbers)} numbers"
        )


def _check_sparse(sparse: Any) -> None:
    _require_size(sparse.dims, _short(sparse.values.name))
    _check_tensor(sparse.values)
    _check_tensor(sparse.indices)


def _require_size(dims: Iterable[int], name: str) -> int:
    """The elements of a shape; an axis that is not known (0 or -1 in the shape of a value) counts as one or none."""
    axes = list(dims)
    elements = math.prod(max(axis, 0) for axis in axes)
    if len(axes) > MOST_AXES or math.prod(max(axis, 1) for axis in axes) > LARGEST_TENSOR:
        raise _Refused(f"{name} has the shape {_short(str(axes))}, at most {LARGEST_TENSOR} elements are allowed")
    return elements


def _short(text: str) -> str:
    return repr(text[:60] + "…" * (len(text) > 60))
