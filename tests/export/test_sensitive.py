"""Blocks that stay in float, by measured accuracy; and what a precision does to logits, simulated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas.errors import ExportError, MissingPackageError
from hwnas.export.exporter import ExportSpec, make_exporter
from hwnas.export.graph import graph_of
from hwnas.export.sensitive import Choice, accuracy_of, blocks_of, choose_in_float, nodes_in_float
from hwnas.export.simulate import simulated
from hwnas.graphs.plain import plain_graph
from hwnas.space import Position
from hwprof.target import Target

SHAPE = (3, 8, 8)
POSITIONS = tuple(Position(name, ()) for name in ("stem", "body", "head"))
INT8 = Target(precision="int8")


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, Tensor, Tensor]:
    """A network whose stem eight bits ruin, images, and the network's own classes as labels."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.ReLU()))
    net.add_module("body", nn.Sequential(nn.Conv2d(8, 16, 3, 1, 1, bias=False), nn.ReLU()))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5, bias=False)))
    images = torch.randn(300, *SHAPE)
    images[:, 1] *= 1e-3  # beside the others this channel is lost in eight bits, and it decides
    with torch.no_grad():
        net.stem[0].weight[:, 1] *= 3e3
        net.stem[0].weight[:, [0, 2]] *= 0.03
        logits = net(images)
        logits = logits - logits.mean(dim=0)
        net.head[2].bias = nn.Parameter(-net(images).mean(dim=0))  # every class occurs
    return net.eval(), images, logits.argmax(dim=1)


def choose(made: tuple[nn.Module, Tensor, Tensor], target: Target = INT8, **options: object) -> Choice:
    net, images, labels = made
    graph = graph_of(net, SHAPE, "int8", 1, images[:100])
    blocks = blocks_of(net, SHAPE, POSITIONS)
    given: dict[str, object] = {"max_drop": 8.0, **options}
    return choose_in_float(net, graph, target, blocks, lambda part: images[part], labels, **given)


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert", "tensorrt"])
def test_the_block_that_eight_bits_ruin_stays_in_float(runtime: str, made: tuple[nn.Module, Tensor, Tensor]) -> None:
    found = choose(made, Target(runtime=runtime, precision="int8"))
    assert found.in_float == ("stem",)
    assert found.within_drop
    assert found.float_accuracy == 100
    assert found.accuracy >= 92


def test_within_the_budget_nothing_does(made: tuple[nn.Module, Tensor, Tensor]) -> None:
    found = choose(made, max_drop=100.0)
    assert found.in_float == ()
    assert found.within_drop
    assert found.accuracy < 70, "the stem is ruined, and that is what was measured"


def test_a_budget_that_cannot_be_met_is_said_to_be(made: tuple[nn.Module, Tensor, Tensor]) -> None:
    asked: list[tuple[str, ...]] = []

    def slow(in_float: object) -> bool:
        asked.append(tuple(in_float))
        return False

    found = choose(made, worth=slow)
    assert [len(each) for each in asked] == [1, 2], "all in float would be no int8"
    assert asked[0] == ("stem",), "the most sensitive first"
    assert found == Choice((), choose(made, max_drop=100.0).accuracy, 100.0, False)


def test_a_set_that_gains_nothing_is_passed_over(made: tuple[nn.Module, Tensor, Tensor]) -> None:
    found = choose(made, worth=lambda in_float: len(in_float) == 2)
    assert len(found.in_float) == 2
    assert "stem" in found.in_float


def test_without_images_nothing_is_found(made: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, images, labels = made
    graph = graph_of(net, SHAPE, "int8", 1, images[:100])
    with pytest.raises(ExportError, match="labelled images"):
        choose_in_float(net, graph, INT8, {}, lambda part: images[part], labels[:0], max_drop=1.0)


def test_blocks_have_the_nodes_of_the_graph_that_is_exported(made: tuple[nn.Module, Tensor, Tensor]) -> None:
    blocks = blocks_of(made[0], SHAPE, POSITIONS)
    assert list(blocks) == ["stem", "body", "head"]
    assert nodes_in_float(blocks, ["stem", "body", "head"]) == {
        node.name for node in plain_graph(made[0], [SHAPE]).nodes
    }
    assert nodes_in_float(blocks, ["stem"]).isdisjoint(nodes_in_float(blocks, ["head"]))
    with pytest.raises(ExportError, match="belongs to no block"):
        blocks_of(made[0], SHAPE, ())


@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0, 1e-6), ("fp16", 1e-6, 3e-3), ("bf16", 1e-4, 0.1)])
def test_floats_round_as_they_do(
    precision: str, least: float, most: float, made: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, images, _ = made
    graph = plain_graph(net, [SHAPE])
    with torch.no_grad():
        expected = net(images).numpy()
    found = simulated(net, graph, Target(precision=precision))(images.numpy())
    assert found.dtype == np.float32
    assert least <= np.abs(found - expected).max() / np.abs(expected).max() <= most
    assert next(net.parameters()).dtype == torch.float32, "the module stays as it was"


def test_logits_without_numbers_have_no_accuracy() -> None:
    infer: Callable[[np.ndarray], np.ndarray] = lambda images: np.full((len(images), 5), np.nan)  # noqa: E731
    with pytest.raises(ExportError, match="not finite"):
        accuracy_of(infer, lambda part: torch.zeros(4, *SHAPE)[part], torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("name", ["onnx", "tflite", "ncnn", "openvino", "ort"])
def test_every_format_takes_what_stays_in_float(
    name: str, made: tuple[nn.Module, Tensor, Tensor], tmp_path: Path
) -> None:
    net, images, _ = made
    exporter, batch = make_exporter(name), images[:1].numpy()
    with torch.no_grad():
        expected = net(images[:1]).numpy()
    everything = frozenset(node.name for node in plain_graph(net, [SHAPE]).nodes)
    errors = []
    for number, in_float in enumerate((everything, frozenset[str]())):
        path = tmp_path / f"{number}{exporter.suffixes[0]}"
        spec = ExportSpec(SHAPE, "int8", calibration=images[:100], in_float=in_float)
        try:
            exporter.write(net, spec, path)
            logits = exporter.load(path, "int8")(batch)
        except MissingPackageError as error:
            pytest.skip(str(error))
        errors.append(np.abs(logits - expected).max() / np.abs(expected).max())
    assert errors[0] < 5e-3 < errors[1]
