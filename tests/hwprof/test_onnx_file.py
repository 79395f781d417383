"""ONNX files that are not what they should be: each refused for its own reason, nothing else of the disk touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwprof.errors import MeasurementError
from hwprof.runtimes import make_runtime, onnx_file
from hwprof.runtimes.onnx_file import read_onnx
from hwprof.target import Target

FLOAT = TensorProto.FLOAT


def model(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = (), size: int = 4) -> onnx.ModelProto:
    """y = relu(x + w), or other nodes from x and w to y."""
    made = nodes or (helper.make_node("Add", ["x", "w"], ["h"], "add"), helper.make_node("Relu", ["h"], ["y"], "relu"))
    held = weights or (numpy_helper.from_array(np.arange(4, dtype=np.float32), "w"),)
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["batch", size]) for name in "xy")
    graph = helper.make_graph(made, "g", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def relu(source: str, target: str, name: str = "relu") -> onnx.NodeProto:
    return helper.make_node("Relu", [source], [target], name)


def elsewhere(place: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    return tensor


def nested(depth: int) -> onnx.NodeProto:
    """An If inside of an If ..."""
    inner = relu("x", "z")
    for _ in range(depth):
        graph = helper.make_graph([inner], "inner", [], [helper.make_tensor_value_info("z", FLOAT, None)])
        inner = helper.make_node("If", ["x"], ["z"], "if", then_branch=graph, else_branch=graph)
    inner.output[0] = "y"
    return inner


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], "constant", value=tensor)


def short(*, dims: tuple[int, ...], data: bytes = bytes(16), kind: int = FLOAT) -> TensorProto:
    return TensorProto(name="w", data_type=kind, dims=dims, raw_data=data)


def saved(path: Path, made: onnx.ModelProto) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize(
    "made",
    [
        model(),
        model(nested(onnx_file.DEEPEST - 1)),
        model(constant(numpy_helper.from_array(np.zeros((2, 0), np.float16)))),
        model(weights=(helper.make_tensor("w", FLOAT, [4], [1.0, 2.0, 3.0, 4.0]),)),
        model(weights=(helper.make_tensor("w", TensorProto.INT4, [3], [1, 2, 3]),)),
        model(weights=(helper.make_tensor("w", TensorProto.STRING, [2], [b"a", b"b"]),)),
        model(weights=(helper.make_tensor("w", TensorProto.COMPLEX64, [2], [1j, 2]),)),
        model(weights=(helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1, 2]),)),
        model(weights=(helper.make_tensor("w", TensorProto.BOOL, [], [True]),)),
    ],
    ids=["plain", "nested", "none", "numbers", "int4", "texts", "complex", "bfloat16", "bool"],
)
def test_a_model_is_read(made: onnx.ModelProto, tmp_path: Path) -> None:
    assert read_onnx(saved(tmp_path / "m.onnx", made)) == made


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (model(weights=(elsewhere("../secret"),)), r"values of 'w' are in another file \('../secret'\), .* not read"),
        (model(weights=(elsewhere("/etc/passwd"),)), "in another file"),
        (model(weights=(elsewhere("beside.bin"),)), "in another file"),
        (model(constant(elsewhere("beside.bin"))), "in another file"),
        (model(weights=(short(dims=(5,)),)), r"'w' is FLOAT of shape \[5\] and holds 16 bytes and 0 numbers"),
        (model(weights=(short(dims=(2**40,)),)), "'w' has the shape .*1099511627776.*, at most 268435456 elements"),
        (model(weights=(short(dims=(2**62, 2**62)),)), "'w' has the shape"),
        (model(weights=(short(dims=(0, 2**40), data=b""),)), "'w' has the shape"),
        (model(weights=(short(dims=(1,) * 17, data=bytes(4)),)), "'w' has the shape"),
        (model(weights=(short(dims=(4,), kind=99),)), "unknown data type 99"),
        (model(weights=(short(dims=(4,), kind=TensorProto.STRING),)), "'w' is STRING"),
        (model(weights=(TensorProto(name="w", data_type=FLOAT, dims=[4], float_data=[1.0]),)), "holds 0 bytes and 1"),
        (model(size=2**40), "'x' has the shape"),
        (model(relu("h", "y"), relu("y", "h")), "'relu' reads 'h', which nothing before it computes: a cycle"),
        (model(relu("x", "y"), relu("x", "y")), "makes 'y', which is there already"),
        (model(relu("x", "w")), "makes 'w', which is there already"),
        (model(nested(onnx_file.DEEPEST)), "nested more than 8 deep"),
        (model(relu("x", "y", "n" * 1001)), "a name of more than 1000 characters"),
        (model(relu("x", "y" * 1001)), "a name of more than 1000 characters"),
    ],
)
def test_what_is_wrong_is_said(made: onnx.ModelProto, why: str, tmp_path: Path) -> None:
    (tmp_path / "beside.bin").write_bytes(bytes(16))
    with pytest.raises(MeasurementError, match=rf"m\.onnx is refused: .*{why}.*; .* export the network again"):
        read_onnx(saved(tmp_path / "m.onnx", made))


def test_sparse_weights_and_graphs_for_training_are_looked_at(tmp_path: Path) -> None:
    made = model()
    sparse = made.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(short(dims=(2,), data=bytes(8)))
    sparse.values.name = "s"
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 2]), "i"))
    read_onnx(saved(tmp_path / "m.onnx", made))
    sparse.dims[0] = 2**50
    with pytest.raises(MeasurementError, match="'s' has the shape"):
        read_onnx(saved(tmp_path / "m.onnx", made))
    training = model()
    training.training_info.add()
    with pytest.raises(MeasurementError, match="graphs for training"):
        read_onnx(saved(tmp_path / "m.onnx", training))


def test_functions_are_looked_at(tmp_path: Path) -> None:
    made = model()
    made.functions.add(name="f", domain="d", input=["a"], output=["b"], node=[relu("a", "b")])
    read_onnx(saved(tmp_path / "m.onnx", made))
    made.functions[0].node[0].input[0] = "c"
    with pytest.raises(MeasurementError, match="'f', 'relu' reads 'c'"):
        read_onnx(saved(tmp_path / "m.onnx", made))


def test_bounds_of_the_file_and_of_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "m.onnx", model())
    monkeypatch.setattr(onnx_file, "MOST_NODES", 2)  # the graph counts as one
    with pytest.raises(MeasurementError, match="more than 2 nodes"):
        read_onnx(path)
    monkeypatch.setattr(onnx_file, "LARGEST_BYTES", path.stat().st_size - 1)
    with pytest.raises(MeasurementError, match="MiB are read"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda path: path.write_bytes(b"not a model"), "is no ONNX file"),
        (lambda path: path.write_bytes(b""), "holds no network"),
        (lambda path: path.write_bytes(model().SerializeToString()[:-3]), "is no ONNX file"),
        (lambda path: path.mkdir(), "is no ONNX file: .*directory"),
        (lambda path: None, "is no ONNX file: .*No such file"),
    ],
)
def test_what_is_no_onnx(write: Callable[[Path], None], why: str, tmp_path: Path) -> None:
    write(tmp_path / "m.onnx")
    with pytest.raises(MeasurementError, match=rf"m\.onnx {why}"):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("place", ["../secret.bin", "{folder}/secret.bin"])
def test_runtimes_do_not_read_other_folders(runtime: str, place: str, tmp_path: Path) -> None:
    """They read files by themselves; that those are in no other folder is theirs to check, and seen here."""
    pytest.importorskip(runtime)
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (tmp_path / "model").mkdir()
    made = model(weights=(elsewhere(place.format(folder=tmp_path)),))
    with pytest.raises(MeasurementError, match=r"(?s)cannot load.*(director|outside|escape|resolves to|not allowed)"):
        make_runtime(runtime).load(
            saved(tmp_path / "model" / "m.onnx", made), Target(runtime=runtime), profile_nodes=False
        )
