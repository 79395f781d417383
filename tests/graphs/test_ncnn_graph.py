"""ncnn's files as they are written: run by ncnn beside the module, and beside what ncnn's own converter writes."""

from __future__ import annotations

import subprocess
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from hwnas.blocks import SqueezeExcite
from hwnas.errors import SpaceError
from hwnas.graphs import write_arch
from hwnas.graphs.ncnn import ncnn_model, write
from hwnas.graphs.plain import Graph, Node, block_index, plain_graph
from hwnas.graphs.ranges import measure_ranges
from hwnas.space import SearchSpace, rows_of
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.spaces.resnet import ResNetSpace
from hwnas.testing.networks import randomise
from hwprof.errors import TargetError
from hwprof.target import Target

NcnnRuntime = pytest.importorskip("hwprof.runtimes.ncnn", reason="needs ncnn: pip install ncnn").NcnnRuntime

SHAPE = (4, 9, 9)
BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2}
SPACES: tuple[SearchSpace, ...] = (
    MobileNetV3Space(resolutions=(27, 32), depths=(1, 2), num_classes=5, stage_widths=(16, 24), stage_strides=(2, 1),
                     se=(True, False), activations=("relu", "hardswish"), head_widths=(32, 48)),
    NasBench201Space(channels=8, cells=1, resolution=16, num_classes=5),
    ResNetSpace(resolutions=(27, 32), base_depths=(1, 1), depths=(0, 1), stage_widths=(32, 64), stage_strides=(1, 2),
                stem_widths=(8, 16), num_classes=5),
)  # fmt: skip


def module(forward, **children):
    made = type("Made", (nn.Module,), {"forward": forward})()
    for name, child in children.items():
        made.add_module(name, child)
    return made


def run(graph: Graph, folder: Path, precision: str, inputs: list[np.ndarray]) -> np.ndarray:
    path = folder / "model.ncnn.param"
    write(graph, path, precision)
    model = NcnnRuntime().load(path, Target(runtime="ncnn", precision=precision), profile_nodes=False)
    try:
        (output,) = model.infer(inputs)
    finally:
        model.close()
    return output


def difference(net: nn.Module, shapes, folder: Path, precision: str = "fp32", ranges=None) -> float:
    """Largest difference between a module and its ncnn files, as a part of the largest output, or of 0.1."""
    torch.manual_seed(0)
    randomise(net)
    net.eval()
    images = [torch.randn(1, *shape) for shape in shapes]
    with torch.no_grad():
        expected = net(*images).numpy()
    output = run(plain_graph(net, shapes, ranges=ranges), folder, precision, [image.numpy() for image in images])
    assert output.shape == expected.shape
    return float(np.abs(output - expected).max() / max(np.abs(expected).max(), 0.1))


def layers(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[2:]]


def kinds(net: nn.Module, shape=SHAPE) -> list[str]:
    text, _ = ncnn_model(plain_graph(net, [shape]))
    return [words[0] for words in layers(text)][1:]


def conv(*arguments, **options) -> nn.Conv2d:
    return nn.Conv2d(4, *arguments, **options)


GAP, FLAT = nn.AdaptiveAvgPool2d(1), nn.Flatten()
CASES = {
    "conv": (nn.Sequential(conv(6, 3, stride=2, padding=1)), "Convolution"),
    "conv-no-bias": (nn.Sequential(conv(6, 3, bias=False)), "Convolution"),
    "conv-grouped": (nn.Sequential(conv(8, (3, 5), padding=(1, 2), dilation=2, groups=2)), "ConvolutionDepthWise"),
    "conv-bn-relu": (nn.Sequential(conv(6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()), "Convolution"),
    "conv-relu6": (nn.Sequential(conv(6, 3), nn.ReLU6()), "Convolution"),
    "conv-sigmoid": (nn.Sequential(conv(6, 3), nn.Sigmoid()), "Convolution"),
    "conv-hardswish": (nn.Sequential(conv(16, 3), nn.Hardswish()), "Convolution"),
    "depthwise-hardswish": (nn.Sequential(conv(4, 3, groups=4), nn.Hardswish()), "ConvolutionDepthWise"),
    "conv-silu": (nn.Sequential(conv(6, 3), nn.SiLU()), "Convolution Swish"),
    "conv-hardsigmoid": (nn.Sequential(conv(6, 3), nn.Hardsigmoid()), "Convolution HardSigmoid"),
    "conv-relu-relu6": (nn.Sequential(conv(6, 3), nn.ReLU(), nn.ReLU6()), "Convolution Clip"),
    "relu-of-two-readers": (
        module(lambda self, x: (lambda y: self.r(y) + y)(self.c(x)), c=conv(6, 1), r=nn.ReLU()),
        "Convolution Split ReLU BinaryOp",
    ),
    "bn": (nn.Sequential(nn.BatchNorm2d(4)), "BatchNorm"),
    "bn-after-relu": (nn.Sequential(conv(6, 1), nn.ReLU(), nn.BatchNorm2d(6)), "Convolution BatchNorm"),
    "alone": (
        nn.Sequential(nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.SiLU(), nn.Sigmoid()),
        "ReLU Clip HardSwish HardSigmoid Swish Sigmoid",
    ),
    "concat": (module(lambda self, x: torch.cat([self.a(x), x, x], 1), a=nn.ReLU()), "Split ReLU Concat"),
    "add-itself": (module(lambda self, x: x + x), "Split BinaryOp"),
    "max-pool": (nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1)), "Pooling"),
    "avg-pool": (nn.Sequential(nn.AvgPool2d((3, 2), stride=1, padding=(1, 0))), "Pooling"),
    "avg-pool-inside": (nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False)), "Pooling"),
    "head": (nn.Sequential(GAP, FLAT, nn.Linear(4, 3, bias=False)), "Pooling InnerProduct"),
    "linear": (nn.Sequential(FLAT, nn.Linear(324, 7), nn.Hardswish()), "Flatten InnerProduct"),
    "linear-relu6": (
        nn.Sequential(FLAT, nn.Linear(324, 7), nn.ReLU6(), nn.Linear(7, 3)),
        "Flatten InnerProduct InnerProduct",
    ),
    "squeeze-excite": (
        nn.Sequential(conv(16, 1), SqueezeExcite(16)),
        "Convolution Split Pooling InnerProduct InnerProduct HardSigmoid BinaryOp",
    ),
    "pooled": (nn.Sequential(GAP), "Pooling Reshape"),
    "pooled-conv1": (nn.Sequential(GAP, conv(6, 1, bias=False), nn.Hardswish()), "Pooling InnerProduct Reshape"),
    "pooled-conv3": (nn.Sequential(GAP, conv(6, 3, padding=1)), "Pooling Reshape Convolution"),
    "pooled-padded": (nn.Sequential(GAP, conv(6, 1, padding=1)), "Pooling Reshape Convolution"),
    "pooled-depthwise": (nn.Sequential(GAP, conv(4, 1, groups=4)), "Pooling Reshape ConvolutionDepthWise"),
    "pooled-pooled": (nn.Sequential(GAP, GAP, nn.MaxPool2d(1)), "Pooling Reshape Pooling Reshape Pooling"),
    "pooled-bn": (nn.Sequential(GAP, nn.BatchNorm2d(4), nn.SiLU(), FLAT), "Pooling BatchNorm Swish"),
    "pooled-concat": (
        module(lambda self, x: torch.cat([self.g(x), self.g(x)], 1), g=GAP),
        "Pooling Split Concat Reshape",
    ),
    "pooled-concat-conv": (
        module(lambda self, x: torch.cat([self.g(x), self.c(x)], 1), g=GAP, c=conv(5, 9)),
        "Split Pooling Convolution Reshape Concat",
    ),
    "pooled-flat-and-not": (
        module(lambda self, x: (lambda y: self.r(self.f(y)) + self.f(y * y))(self.c(self.g(x))),
               g=GAP, c=conv(6, 1), f=FLAT, r=nn.ReLU()),
        "Pooling InnerProduct Split ReLU BinaryOp BinaryOp",
    ),
    "gate-not-pooled": (
        module(lambda self, x: self.c(x) * x, c=nn.Sequential(conv(4, 9), nn.Sigmoid())),
        "Split Convolution BinaryOp",
    ),
    "pooled-plus-image": (module(lambda self, x: x + self.g(x), g=GAP), "Split Pooling BinaryOp"),
    "shared": (
        module(lambda self, x: self.layer(self.layer(x)), layer=nn.Sequential(conv(4, 1), nn.BatchNorm2d(4))),
        "Convolution Convolution",
    ),
    "unread": (module(lambda self, x: (self.c(x), self.r(x))[1], c=conv(4, 1), r=nn.ReLU()), "ReLU"),
}  # fmt: skip


@pytest.mark.parametrize(("net", "expected"), CASES.values(), ids=CASES)
def test_files_compute_what_the_module_computes(net, expected, tmp_path):
    torch.manual_seed(0)
    assert kinds(net) == expected.split()
    for precision, bound in BOUNDS.items():
        assert difference(net, [SHAPE], tmp_path, precision) < bound, precision


def test_several_inputs(tmp_path):
    net = module(lambda self, a, b, c: a * b + c)
    assert difference(net, [SHAPE, (4, 1, 1), SHAPE], tmp_path) < 1e-6
    assert difference(module(lambda self, a, b: self.l(a) * b, l=nn.Linear(7, 3)), [(7,), (3,)], tmp_path) < 1e-6


@settings(max_examples=60)
@given(
    channels=st.sampled_from([1, 3, 4, 8, 16]),
    factor=st.sampled_from([1, 2, 3, 8]),
    grouped=st.sampled_from(["dense", "halves", "depthwise"]),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
)
def test_any_convolution(
    tmp_path_factory, channels, factor, grouped, kernel, stride, padding, dilation, size, precision
):
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    groups = {"dense": 1, "halves": 2 if channels % 2 == 0 else 1, "depthwise": channels}[grouped]
    net = nn.Sequential(nn.Conv2d(channels, channels * factor, kernel, stride, padding, dilation, groups), nn.ReLU6())
    bound = BOUNDS[precision]
    assert difference(net, [(channels, *size)], tmp_path_factory.getbasetemp(), precision) < bound


@settings(max_examples=60)
@given(
    channels=st.sampled_from([1, 3, 4, 8, 16]),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    data=st.data(),
    size=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    form=st.sampled_from(["max", "all", "inside"]),
)
def test_any_pooling(tmp_path_factory, channels, kernel, stride, data, size, form):
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    pool = (
        nn.MaxPool2d(kernel, stride, padding)
        if form == "max"
        else nn.AvgPool2d(kernel, stride, padding, count_include_pad=form == "all")
    )
    assert difference(nn.Sequential(pool), [(channels, *size)], tmp_path_factory.getbasetemp()) < 1e-5


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
@pytest.mark.parametrize("precision", [*BOUNDS, "int8"])
def test_networks_of_the_spaces(space, precision, tmp_path):
    """The bound of int8 is on the root mean square: what a scale of 1/127 of the range costs over some 40 layers."""
    torch.manual_seed(0)
    for number, arch in enumerate(rows_of(space.sample(4, np.random.default_rng(3)))):
        net = space.build(arch)
        randomise(net)
        net.eval()
        shape = space.input_shape(arch)
        images = torch.randn(16, *shape)
        ranges = measure_ranges(net, images, [shape]) if precision == "int8" else None
        with torch.no_grad():
            expected = net(images[:1]).numpy()
        output = run(plain_graph(net, [shape], ranges=ranges), tmp_path, precision, [images[:1].numpy()])
        if precision == "int8":
            error = np.sqrt(np.mean((output - expected) ** 2) / np.mean(expected**2))
            assert 1e-6 < error < 0.2, number
        else:
            assert np.abs(output - expected).max() / np.abs(expected).max() < BOUNDS[precision], number


def rounded(array: np.ndarray, largest: int = 127) -> np.ndarray:
    """As ncnn rounds activations: halves away from zero."""
    return np.clip(np.sign(array) * np.floor(np.abs(array) + 0.5), -largest, largest)


def int8_layer(layer: nn.Conv2d | nn.Linear, x: np.ndarray, largest: int, scale: float) -> np.ndarray:
    """A layer on integers, in float64: weights of a scale each output, activations of the scale given."""
    weight = layer.weight.detach().double().numpy()
    peaks = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scales = np.where(peaks > 0, largest / np.where(peaks > 0, peaks, 1), 1)
    columns = scales.reshape(-1, *[1] * (weight.ndim - 1))
    whole = torch.from_numpy(np.rint(weight * columns))
    integers = torch.from_numpy(rounded(x.astype(np.float64) * scale))
    if isinstance(layer, nn.Conv2d):
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        result = nn.functional.conv2d(integers, whole, None, *options).numpy()
    else:
        result = nn.functional.linear(integers, whole).numpy()
    columns = scales.reshape(1, -1, *[1] * (result.ndim - 2))
    return result / (columns * scale) + layer.bias.detach().double().numpy().reshape(columns.shape)


INT8_LAYERS = {
    "3x3": (nn.Conv2d(4, 6, 3, padding=1), 31),
    "3x3-wide": (nn.Conv2d(32, 48, 3, padding=1), 31),
    "3x3-stride": (nn.Conv2d(16, 24, 3, stride=2, padding=1), 127),
    "5x3": (nn.Conv2d(3, 16, (5, 3), dilation=(1, 2)), 127),
    "1x1": (nn.Conv2d(24, 16, 1), 127),
    "depthwise": (nn.Conv2d(16, 16, 5, stride=2, padding=2, groups=16), 127),
    "depthwise-odd": (nn.Conv2d(5, 5, 3, padding=1, groups=5), 127),
}


@pytest.mark.parametrize(("layer", "largest"), INT8_LAYERS.values(), ids=INT8_LAYERS)
def test_int8_layers_compute_on_the_scales_that_are_written(layer, largest, tmp_path):
    torch.manual_seed(0)
    layer.reset_parameters()
    with torch.no_grad():
        layer.weight[0] = 0
    image = torch.randn(1, layer.in_channels, 11, 13)
    graph = plain_graph(nn.Sequential(layer, nn.ReLU()), [image.shape[1:]], ranges={"input_1": (-2.0, 1.0)})
    expected = np.maximum(int8_layer(layer, image.numpy(), largest, 127 / 2), 0)
    output = run(graph, tmp_path, "int8", [image.numpy()])
    assert np.abs(output - expected).max() < 5e-4 * np.abs(expected).max()


def test_int8_linear_layers_and_what_stays_int8_between_convolutions(tmp_path):
    torch.manual_seed(0)
    first, second, last = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 5, groups=16), nn.Linear(16, 3)
    net = nn.Sequential(first, nn.Hardswish(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    image = torch.randn(1, 8, 10, 10)
    ranges = measure_ranges(net, image, [image.shape[1:]])
    graph = plain_graph(net, [image.shape[1:]], ranges=ranges)
    scales = [127 / max(map(abs, graph.ranges[name])) for name in (graph.inputs[0], *(n.name for n in graph.nodes))]
    x = int8_layer(first, image.numpy(), 127, scales[0])
    x = x * np.clip(x + 3, 0, 6) / 6
    pooled = int8_layer(second, x, 127, scales[2]).mean(axis=(2, 3))
    expected = int8_layer(last, pooled, 127, scales[5])
    # A value between two integers may be rounded to either, so a step of the first scale is let pass.
    assert np.abs(run(graph, tmp_path, "int8", [image.numpy()]) - expected).max() < 0.01 * np.abs(expected).max()
    text, _ = ncnn_model(graph, "int8")
    terms = [word for words in layers(text) for word in words[4:] if word.startswith("8=")]
    assert terms == ["8=102", "8=1", "8=2"]


def test_int8_convolutions_of_groups_are_left_alone(tmp_path):
    """ncnn gives no number at all for these."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 16, 3, groups=2))
    text, _ = ncnn_model(plain_graph(net, [(16, 9, 9)]), "int8")
    assert "8=" not in text.split("7=2")[1]
    assert difference(net, [(16, 9, 9)], tmp_path, "int8") < BOUNDS["fp16"]


def test_several_readers_of_int8(tmp_path):
    """Two convolutions read an int8 blob through a Split; an addition that reads it too keeps it float."""

    def both(self, x):
        y = self.stem(x)
        return self.left(y) + self.right(y)

    def three(self, x):
        y = self.stem(x)
        return self.left(y) + self.right(y) + y

    for forward, term in ((both, "8=102"), (three, "8=2")):
        torch.manual_seed(0)
        net = module(
            forward, stem=nn.Conv2d(8, 8, 1), left=nn.Conv2d(8, 8, 3, padding=1), right=nn.Conv2d(8, 8, 1)
        ).eval()
        image = torch.randn(1, 8, 12, 12)
        graph = plain_graph(net, [(8, 12, 12)], ranges=measure_ranges(net, image, [(8, 12, 12)]))
        with torch.no_grad():
            expected = net(image).numpy()
        error = np.abs(run(graph, tmp_path, "int8", [image.numpy()]) - expected).max() / np.abs(expected).max()
        assert error < 0.05
        assert layers(ncnn_model(graph, "int8")[0])[1][-1] == term


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (lambda: plain_graph(nn.Sequential(nn.ReLU()), [SHAPE], batch=2), TargetError, "batch must be 1, got 2"),
        (lambda: Graph((Node("gelu", "b0:y", ("x",)),), ("x",), "b0:y", {"x": (1, 4), "b0:y": (1, 4)}, {}),
         SpaceError, "b0:y: no ncnn form of gelu"),
        (lambda: plain_graph(module(lambda self, a, b: a + b), [SHAPE, (1, 9, 9)]), SpaceError, "ncnn does not add"),
        (lambda: plain_graph(module(lambda self, a, b: a * b), [SHAPE, (4, 9, 1)]), SpaceError, "ncnn does not mul"),
        (lambda: plain_graph(module(lambda self, a, b: a + b), [(9,), SHAPE]), SpaceError, "ncnn does not add"),
    ],
)  # fmt: skip
def test_what_cannot_be_written(graph, error, message, tmp_path):
    with pytest.raises(error, match=message):
        write(graph(), tmp_path / "model.ncnn.param", "fp32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_layers_are_tagged_by_position(space, tmp_path):
    (arch,) = rows_of(space.sample(1, np.random.default_rng(0)))
    path = write_arch(space, arch, Target(runtime="ncnn"), tmp_path / "net")
    assert path.name == "net.ncnn.param"
    assert (tmp_path / "net.ncnn.bin").stat().st_size > 1000
    words = layers(path.read_text())[1:-1]
    owners = {block_index(line[1]) for line in words}
    assert owners == {space.positions.index(position) for position, _ in space.placed_blocks(arch)} - unseen(
        space, arch
    )
    # ncnn before 2025 reads 15 characters of a number
    assert all(
        len(value) <= 15 for line in words for word in line if "=" in word for value in word.split("=")[1].split(",")
    )


def unseen(space: SearchSpace, arch) -> set[int]:
    """Positions whose block computes nothing."""
    blocks = {space.positions.index(position): block for position, block in space.placed_blocks(arch)}
    return {index for index, block in blocks.items() if not block.trace.ops}


# What pnnx makes of a module, with two differences that are ours: hard-swish is fused, inputs say their shape.


def pnnx_text(net: nn.Module, shape, folder: Path) -> str:
    pnnx = pytest.importorskip("pnnx", reason="needs ncnn's converter: pip install pnnx")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(net.eval(), torch.zeros(1, *shape)).save(folder / "net.pt")
    extents = ",".join(map(str, (1, *shape)))
    command = [pnnx.EXEC_PATH, "net.pt", f"inputshape=[{extents}]", "fp16=0"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    return (folder / "net.ncnn.param").read_text()


def contents(text: str) -> Counter[tuple[object, ...]]:
    """Every layer as (kind, number of inputs, number of outputs, parameters), hard-swish fused where it can be."""
    found: list[tuple[str, list[str], list[str], dict[int, tuple[float, ...]]]] = []
    for kind, _, inputs, outputs, *rest in layers(text):
        blobs, pairs = rest[: int(inputs) + int(outputs)], rest[int(inputs) + int(outputs) :]
        params = {int(key): tuple(map(float, value.split(","))) for key, value in (pair.split("=") for pair in pairs)}
        sources, targets = blobs[: int(inputs)], blobs[int(inputs) :]
        before = next((layer for layer in found if layer[2] == sources), None)
        if kind == "HardSwish" and before and before[0].startswith(("Conv", "Inner")) and 9 not in before[3]:
            before[3].update({9: (6.0,), -23310: (2.0, *params[0], *params[1])})
            before[2][:] = targets
        else:
            found.append((kind, sources, targets, {} if kind in ("Input", "BatchNorm") else params))
    return Counter(
        (kind, len(sources), len(targets), *sorted((key, *(round(number, 6) for number in values))
                                                   for key, values in params.items()))
        for kind, sources, targets, params in found
    )  # fmt: skip


PNNX_CASES = ["conv", "conv-grouped", "conv-bn-relu", "conv-relu6", "conv-sigmoid", "conv-hardswish", "conv-silu",
              "conv-hardsigmoid", "depthwise-hardswish", "relu-of-two-readers", "squeeze-excite"]  # fmt: skip


@pytest.mark.parametrize("name", PNNX_CASES)
def test_the_layers_are_those_of_pnnx(name, tmp_path):
    net, _ = CASES[name]
    text, weights = ncnn_model(plain_graph(net.eval(), [SHAPE]))
    assert contents(text) == contents(pnnx_text(net, SHAPE, tmp_path))
    assert len(weights) == (tmp_path / "net.ncnn.bin").stat().st_size


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_networks_are_those_of_pnnx(space, tmp_path):
    torch.manual_seed(0)
    (arch,) = rows_of(space.sample(1, np.random.default_rng(2)))
    net = space.build(arch)
    randomise(net)
    shape = space.input_shape(arch)
    text, weights = ncnn_model(plain_graph(net.eval(), [shape]))
    assert contents(text) == contents(pnnx_text(net, shape, tmp_path))
    assert len(weights) == (tmp_path / "net.ncnn.bin").stat().st_size
