"""Nodes that stay in float in int8 files, in every format that has int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from hwnas.graphs.onnx_int8 import int8_model
from hwnas.graphs.plain import Graph, plain_graph
from hwnas.graphs.ranges import measure_ranges


class Net(nn.Module):
    """A branch, so that tensors have readers in float and in int8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.first, self.second = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 16, 1)
        self.relu, self.act, self.pool = nn.ReLU(), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)
        self.flatten, self.last = nn.Flatten(), nn.Linear(16, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        x = self.act(self.second(x + self.first(x)))
        logits: torch.Tensor = self.last(self.flatten(self.pool(x)))
        return logits


def onnx_logits(graph: Graph, images: np.ndarray, folder: Path, *, symmetric: bool) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = int8_model(graph, symmetric=symmetric)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def tflite_logits(graph: Graph, images: np.ndarray, folder: Path) -> np.ndarray:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed: pip install hwnas[litert]")
    from ai_edge_litert.interpreter import Interpreter

    from hwnas.graphs.tflite import tflite_model

    made = Interpreter(model_content=tflite_model(graph, "int8"), num_threads=1)
    made.allocate_tensors()
    made.set_tensor(made.get_input_details()[0]["index"], np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    made.invoke()
    return made.get_tensor(made.get_output_details()[0]["index"])


def ncnn_logits(graph: Graph, images: np.ndarray, folder: Path) -> np.ndarray:
    ncnn = pytest.importorskip("ncnn", reason="ncnn is not installed: pip install ncnn")
    from hwnas.graphs.ncnn import write
    from hwprof.runtimes.ncnn_files import weights_path

    path = folder / "net.ncnn.param"
    write(graph, path, "int8")
    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = net.opt.use_fp16_storage = False
    net.load_param(str(path))
    net.load_model(str(weights_path(path)))
    extractor = net.create_extractor()
    extractor.input(graph.inputs[0], ncnn.Mat(images[0]).clone())
    return np.array(extractor.extract(graph.output)[1])[None]


FORMATS: dict[str, Callable[[Graph, np.ndarray, Path], np.ndarray]] = {
    "onnx": lambda *given: onnx_logits(*given, symmetric=False),
    "onnx-symmetric": lambda *given: onnx_logits(*given, symmetric=True),
    "tflite": tflite_logits,
    "ncnn": ncnn_logits,
}


@pytest.fixture(scope="module")
def network() -> tuple[Graph, np.ndarray, np.ndarray]:
    """An int8 graph of a network whose stem eight bits ruin, an image, and the module's logits."""
    torch.manual_seed(0)
    net = Net().eval()
    images = torch.randn(16, 3, 16, 16)
    images[:, 1] *= 1e-3  # beside the others this channel is lost in eight bits, and it decides
    with torch.no_grad():
        net.stem.weight[:, 1] *= 3e3
        net.stem.weight[:, [0, 2]] *= 0.03
        logits = net(images[:1]).numpy()
    shape = (3, 16, 16)
    graph = plain_graph(net, [shape], ranges=measure_ranges(net, images, [shape]))
    return graph, images[:1].numpy(), logits


@pytest.mark.parametrize("name", FORMATS)
def test_what_stays_in_float_is_exact(name: str, network: tuple[Graph, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    graph, images, logits = network
    names = [node.name for node in graph.nodes]
    largest = np.abs(logits).max()

    def error(in_float: list[str]) -> float:
        found = FORMATS[name](replace(graph, in_float=frozenset(in_float)), images, tmp_path)
        return float(np.abs(found - logits).max() / largest)

    everything, one, nothing = error(names), error(names[:1]), error([])
    assert everything < (5e-3 if name == "ncnn" else 1e-4), "half weights in ncnn, which has no other beside int8"
    assert one < 0.5 * nothing, "the ruined layer alone in float"
    assert one > 3 * everything, "the others are still in int8"


def test_no_pairs_around_what_is_in_float(network: tuple[Graph, np.ndarray, np.ndarray]) -> None:
    graph = network[0]
    kinds = [
        node.op_type
        for node in int8_model(replace(graph, in_float=frozenset(node.name for node in graph.nodes))).graph.node
    ]
    assert "Conv" in kinds
    assert "QuantizeLinear" not in kinds


def test_a_block_of_zeros_after_another_has_numbers(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    images = torch.randn(2, *(3, 4, 4))
    graph = plain_graph(net, [(3, 4, 4)], batch=2, ranges=measure_ranges(net, images, [(3, 4, 4)]))
    assert not onnx_logits(graph, images.numpy(), tmp_path, symmetric=False).any()
