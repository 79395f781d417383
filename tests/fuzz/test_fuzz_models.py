"""Files of models: what runtimes read before a runtime sees it, ONNX of strangers, weights and checkpoints."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import as_json, bytes_like, changed_values, fuzz, harmless, refused, text_like
from torch import nn

from hwnas.graphs import write_arch
from hwnas.spaces import make_space
from hwnas.train.checkpoint import load_checkpoint, save_checkpoint
from hwnas.trained import load_weights
from hwprof.runtimes.arrays import read_arrays
from hwprof.runtimes.ncnn_files import has_int8_weights, input_shapes, layer_kinds, read_text, sealed, weights_path
from hwprof.runtimes.onnx_file import read_onnx
from hwprof.runtimes.torch_file import TEXT, WEIGHTS, read_graph_file
from hwprof.target import Target

SPACE = make_space("nasbench201", {"channels": 2, "cells": 1, "resolution": 8, "in_channels": 1, "num_classes": 3})
ARCH = (1, 2, 3, 1, 2, 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One network as a file of each runtime, by the name of the runtime."""
    folder = tmp_path_factory.mktemp("models")
    return {
        runtime: write_arch(SPACE, ARCH, Target(runtime=runtime), folder / runtime)
        for runtime in ("onnxruntime", "torch", "ncnn")
    }


def zipped(members: dict[str, bytes], **options: Any) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


def read_ncnn(path: Path) -> None:
    text = read_text(path)
    layer_kinds(text), input_shapes(text), has_int8_weights(text)


READERS: dict[str, Callable[[Path], object]] = {
    "onnxruntime": read_onnx,
    "torch": read_graph_file,
    "ncnn": read_ncnn,
}


@pytest.mark.parametrize("runtime", READERS)
def test_good_files_are_read(runtime: str, models: dict[str, Path]) -> None:
    READERS[runtime](models[runtime])


@pytest.mark.parametrize("runtime", READERS)
@fuzz
@given(data=st.data())
def test_any_bytes(runtime: str, data: st.DataObject, models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / models[runtime].name
    path.write_bytes(data.draw(bytes_like(models[runtime].read_bytes())))
    weights_path(path).write_bytes(b"" if runtime != "ncnn" else weights_path(models[runtime]).read_bytes())
    refused(lambda: READERS[runtime](path))


@st.composite
def changed_onnx(draw: st.DrawFn, data: bytes) -> bytes:
    """A model with one to three of its fields changed, so that it still is one to a parser."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    numbers = st.sampled_from([-1, 0, 1, 2**31, 2**40, 2**62, -(2**63)])
    for _ in range(draw(st.integers(1, 3))):
        tensor, node = draw(st.sampled_from(graph.initializer)), draw(st.sampled_from(graph.node))
        change = draw(st.sampled_from(["dims", "type", "raw", "elsewhere", "input", "output", "swap", "drop", "shape"]))
        if change == "dims":
            tensor.dims.append(draw(numbers))
        elif change == "type":
            tensor.data_type = draw(st.integers(-1, 40))
        elif change == "raw":
            tensor.raw_data = tensor.raw_data[: draw(st.integers(0, 8))]
        elif change == "elsewhere":
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=draw(st.sampled_from(["../x", "/etc/passwd", ""])))
        elif change in ("input", "output"):
            names = getattr(node, change)
            names[draw(st.integers(0, len(names) - 1))] = draw(st.sampled_from(graph.node)).output[0]
        elif change == "swap":
            other = draw(st.sampled_from(graph.node))
            kept = onnx.NodeProto.FromString(node.SerializeToString())
            node.CopyFrom(other)
            other.CopyFrom(kept)
        elif change == "drop":
            graph.node.remove(node)
        else:
            graph.input[0].type.tensor_type.shape.dim.add(dim_value=draw(numbers))
    return bytes(model.SerializeToString())


@fuzz
@given(data=st.data())
def test_the_fields_of_onnx(data: st.DataObject, models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(data.draw(changed_onnx(models["onnxruntime"].read_bytes())))
    if refused(lambda: read_onnx(path)) is None:
        known = {"", *(value.name for value in read_onnx(path).graph.input)}
        known |= {tensor.name for tensor in read_onnx(path).graph.initializer}
        for node in read_onnx(path).graph.node:
            assert known.issuperset(node.input)
            known |= {*node.output}


@fuzz
@given(data=st.data())
def test_the_text_of_a_graph_for_torch(data: st.DataObject, models: dict[str, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(models["torch"]) as archive:
        text, weights = json.loads(archive.read(TEXT)), archive.read(WEIGHTS)
    path = tmp_path / "net"
    path.write_bytes(zipped({TEXT: as_json(data.draw(changed_values(text))).encode(), WEIGHTS: weights}))
    refused(lambda: read_graph_file(path))


@fuzz
@given(data=st.data())
def test_the_text_of_ncnn(data: st.DataObject, models: dict[str, Path], tmp_path: Path) -> None:
    text, weights = models["ncnn"].read_text(), weights_path(models["ncnn"]).read_bytes()
    body = data.draw(text_like(text.partition("# sealed")[0]))
    path = tmp_path / "net.ncnn.param"
    path.write_bytes(sealed(body.encode(errors="replace").decode(), weights).encode())
    weights_path(path).write_bytes(weights)
    refused(lambda: read_ncnn(path))


ARRAY = io.BytesIO()
np.save(ARRAY, np.zeros((2, 3), np.float32))


@fuzz
@given(data=bytes_like(ARRAY.getvalue()))
def test_the_inputs_of_an_inference(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    refused(lambda: read_arrays([str(tmp_path / "x.npy")]))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))


SAFE = safetensors.torch.save(network().state_dict())
HEADER_BYTES = struct.unpack("<Q", SAFE[:8])[0]


@fuzz
@given(data=bytes_like(SAFE))
def test_weights(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(data)
    refused(lambda: load_weights(network(), tmp_path / "net.safetensors"))


@fuzz
@given(header=changed_values(json.loads(SAFE[8 : 8 + HEADER_BYTES])))
def test_the_header_of_weights(header: Any, tmp_path: Path) -> None:
    text = as_json(header).encode()
    (tmp_path / "net.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + SAFE[8 + HEADER_BYTES :])
    refused(lambda: load_weights(network(), tmp_path / "net.safetensors"))


def torch_bytes(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


OLDER = torch_bytes(network().state_dict())


@fuzz
@given(data=st.data())
def test_weights_of_older_runs(data: st.DataObject, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(OLDER)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = data.draw(st.sampled_from(sorted(members)))
    changed = zipped({**members, name: data.draw(bytes_like(members[name]))})
    (tmp_path / "net.pt").write_bytes(data.draw(st.one_of(bytes_like(OLDER), st.just(changed))))
    refused(lambda: load_weights(network(), tmp_path / "net.pt"))


@fuzz
@given(data=st.data())
def test_a_checkpoint(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "trial.checkpoint"
    save_checkpoint(path, "me", {"weights": torch.zeros(5), "optimizer": {"state": {0: [1, None]}}})
    path.write_bytes(data.draw(bytes_like(path.read_bytes())))
    with harmless():
        state = load_checkpoint(path, "me")
    assert state is None or np.array_equal(state["weights"], np.zeros(5))
