"""ONNX as TensorRT 8 reads it: it takes the axes of reductions from an attribute, where they were up to opset 17.

Since opset 18 they are an input, which TensorRT 8 passes over: it averages over everything, without a word. (NVIDIA's
issue TensorRT#3467; TensorRT 10 reads both.)
"""

from __future__ import annotations

from pathlib import Path

from hwprof.errors import MeasurementError, RuntimeMissingError

OPSET = 17


def older_onnx(path: Path) -> bytes:
    """A model file as ONNX of at most opset 17.

    Raises MeasurementError if it is none, or has a reduction over axes that are computed, RuntimeMissingError without
    the package onnx.
    """
    try:
        import onnx

        from hwprof.runtimes.onnx_file import read_onnx
    except ImportError as error:
        raise RuntimeMissingError(f"TensorRT 8 needs the package onnx beside it ({error}); pip install onnx") from error
    model = read_onnx(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if not node.op_type.startswith("Reduce") or node.op_type == "ReduceSum" or len(node.input) < 2:
            continue  # ReduceSum has its axes as an input since opset 13, and is read so
        axes = weights.get(node.input[1])
        if axes is None:
            raise MeasurementError(f"{path.name}: TensorRT 8 cannot read the axes of {node.name}, they are no constant")
        node.attribute.append(onnx.helper.make_attribute("axes", onnx.numpy_helper.to_array(axes).tolist()))
        del node.input[1]
    for opset in model.opset_import:
        if opset.domain == "" and opset.version > OPSET:
            opset.version = OPSET
    return bytes(model.SerializeToString())
