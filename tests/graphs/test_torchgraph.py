"""Graphs for torch: what is written computes what the module computes, on the device's side of the agent."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_onnx_graph import CASES, SHAPE, module, trained
from torch import nn

from hwnas.errors import SpaceError
from hwnas.graphs import write_arch, write_block
from hwnas.graphs.plain import Graph, Node, plain_graph
from hwnas.graphs.torchgraph import write
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.spaces.resnet import ResNetSpace
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.runtimes.torch_file import KINDS, read_graph_file
from hwprof.target import Target

# largest difference to the module in float32, as a part of the largest output: bfloat16 has 8 bits, float16 11
TOLERANCES = {"fp32": 1e-5, "fp16": 0.01, "bf16": 0.05}
BATCH = 2

SPACES = {
    "mobilenetv3": MobileNetV3Space(
        resolutions=(32,), depths=(1, 2), stage_widths=(16, 24), stage_strides=(2, 1), se=(True, False),
        activations=("relu6", "silu"), head_widths=(32, 48), num_classes=5,
    ),
    "nasbench201": NasBench201Space(cells=1, resolution=16),
    "resnet": ResNetSpace(
        resolutions=(33,), base_depths=(1, 1), depths=(0, 1), stage_widths=(32, 64), stage_strides=(1, 2),
        stem_widths=(8, 16), num_classes=5,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=TOLERANCES)
def agent(request: pytest.FixtureRequest) -> Iterator[tuple[AgentClient, Target]]:
    target = Target(runtime="torch", precision=request.param, batch=BATCH)
    with AgentClient(make_device("local"), target) as client:
        yield client, target


def difference(agent: tuple[AgentClient, Target], net: nn.Module, shape: tuple[int, ...], folder: Path, **options):
    client, target = agent
    inputs = options.pop("inputs", 1)
    images = [torch.randn(BATCH, *shape) for _ in range(inputs)]
    path = folder / "net.torch.zip"
    write(plain_graph(net, [shape] * inputs, batch=BATCH, **options), path, target.precision)
    for number, image in enumerate(images):
        np.save(folder / f"{number}.npy", image.numpy())
    (output,) = client.infer(path, [folder / f"{number}.npy" for number in range(inputs)])
    with torch.no_grad():
        expected = net(*images).numpy()
    found = np.frombuffer(output.data, "<f4").reshape(output.shape)
    assert found.shape == expected.shape
    assert expected.std() > 0  # an output that does not depend on the images would prove nothing
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_every_operator_computes_what_the_module_computes(agent, tmp_path, name):
    torch.manual_seed(0)
    assert difference(agent, trained(CASES[name][0]), SHAPE, tmp_path) < TOLERANCES[agent[1].precision]


def test_several_inputs(agent, tmp_path):
    net = module(lambda self, a, b, c: a * b + c)
    assert difference(agent, net, SHAPE, tmp_path, inputs=3) < TOLERANCES[agent[1].precision]


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_networks_of_every_space(agent, tmp_path, space):
    torch.manual_seed(0)
    for arch in map(tuple, space.sample(2, np.random.default_rng(1)).tolist()):
        net = trained(space.build(arch))
        found = difference(agent, net, space.input_shape(arch), tmp_path, positions=space.positions)
        assert found < TOLERANCES[agent[1].precision]


def test_the_cases_cover_every_operator():
    """Of those that are not in `CASES` (several inputs, say), the spaces hold the rest."""
    graphs = [plain_graph(net, [SHAPE]) for net, _ in CASES.values()]
    graphs.append(plain_graph(module(lambda self, a, b: a * b), [SHAPE] * 2))
    assert {node.kind for graph in graphs for node in graph.nodes} == set(KINDS)


def test_networks_and_blocks_of_the_meta_device_can_be_run(agent, tmp_path):
    client, target = agent
    space = SPACES["mobilenetv3"]
    arch = space.check([0] * len(space.slots))
    blocks = [block for _, block in space.placed_blocks(arch)]
    files = [write_arch(space, arch, target, tmp_path / "net")]
    files += [write_block(block, target, tmp_path / f"block{number}") for number, block in enumerate(blocks)]
    for path in files:
        graph = read_graph_file(path)
        np.save(tmp_path / "x.npy", np.ones(graph.shapes[graph.inputs[0]], np.float32))
        (output,) = client.infer(path, [tmp_path / "x.npy"])
        found = np.frombuffer(output.data, "<f4")
        assert np.isfinite(found).all()
        assert 1e-6 < np.abs(found).max() < 1e6


def test_a_file_is_readable_without_code_and_always_the_same(tmp_path):
    torch.manual_seed(0)
    graph = plain_graph(trained(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.ReLU())), [SHAPE])
    for name in ("one", "two"):
        write(graph, tmp_path / name, "fp16")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with zipfile.ZipFile(tmp_path / "one") as archive:
        text = json.loads(archive.read("graph.json"))
        weights = np.frombuffer(archive.read("weights.bin"), "<f4")
    assert [step["kind"] for step in text["steps"]] == ["conv", "relu"]
    # a bias that the module never had is not made up
    assert text["steps"][0]["weights"] == {"weight": [6, 4, 3, 3]}
    assert np.array_equal(weights, graph.nodes[0].weights["weight"].ravel())
    read = read_graph_file(tmp_path / "one")
    assert (read.inputs, read.output, read.shapes) == (graph.inputs, graph.output, graph.shapes)
    assert [step.output for step in read.steps] == [node.name for node in graph.nodes]


def test_what_cannot_be_written(tmp_path):
    graph = plain_graph(nn.Sequential(nn.ReLU()), [SHAPE])
    with pytest.raises(SpaceError, match="no precision 'int8'; they have fp32, fp16, bf16"):
        write(graph, tmp_path / "net", "int8")
    gelu = Graph((Node("gelu", "y", ("x",)),), ("x",), "y", {"x": (1, 4), "y": (1, 4)}, {})
    with pytest.raises(SpaceError, match="y: no torch form of gelu is known"):
        write(gelu, tmp_path / "net", "fp32")
    assert not list(tmp_path.iterdir())
