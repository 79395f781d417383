"""`morph`: conformance, what its architectures mean, and its files in every runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

from hwnas.errors import SpaceError
from hwnas.export.onnx import export_onnx
from hwnas.graphs import ncnn as ncnn_files
from hwnas.graphs.onnx import onnx_model
from hwnas.graphs.plain import Graph, plain_graph
from hwnas.graphs.ranges import measure_ranges
from hwnas.latency.covering import covering_archs
from hwnas.latency.fusion import contextual
from hwnas.latency.index import BlockIndex
from hwnas.space import Arch, rows_of
from hwnas.spaces import make_space
from hwnas.spaces.morph import MorphSpace
from hwnas.spaces.morph_blocks import ConcatSkip, ConvexSkip, MorphBlock
from hwnas.testing.networks import randomise
from hwnas.testing.spaces import check_space
from hwnas.trace import Factor, scale, trace
from hwprof.target import Target

SMALL = {"num_classes": 5, "resolution": 12, "widths": (4, 8, 12, 16), "stages": 2, "max_depth": 3}


@pytest.fixture(scope="module")
def small() -> MorphSpace:
    return MorphSpace(**SMALL)


@pytest.mark.parametrize(
    ("arguments", "archs"),
    [
        ({"widths": (8, 16), "max_depth": 2}, 0),
        (SMALL, 6),
        (SMALL | {"kernels": (3, 5, 7), "resolution": 9, "in_channels": 1, "max_depth": 2}, 4),
        ({"widths": (6,), "kernels": (3,), "stages": 1, "max_depth": 1, "resolution": 7, "stem_stride": 2}, 2),
    ],
    ids=["wide", "small", "odd", "tiny"],
)
def test_conformance(arguments, archs):
    check_space(make_space("morph", arguments), archs=archs)


def test_every_block_can_be_profiled(small):
    index = BlockIndex(small)
    archs = covering_archs(small, index, np.random.default_rng(0))
    assert index.counts(archs).any(axis=0).all()
    assert contextual(small, small.sample(20, np.random.default_rng(0))) == ()


def arch_of(space: MorphSpace, stem: int, *stages: list[tuple[int, int, str, str]]) -> Arch:
    """The architecture of these layers: width, kernel, convolution, skip."""
    choice = space.describe((0,) * len(space.slots)) | {"stem.width": stem}
    for stage, layers in enumerate(stages):
        choice[f"stage{stage}.depth"] = len(layers)
        for place, layer in enumerate(layers, space.max_depth - len(layers)):
            names = [f"stage{stage}.{place}.{part}" for part in ("width", "kernel", "conv", "skip")]
            choice |= dict(zip(names, layer, strict=True))
    return space.arch_of(choice)


def test_blocks_of_an_architecture(small):
    arch = arch_of(
        small, 8,
        [(8, 3, "plain", "convex"), (12, 5, "separable", "concat")],
        [(4, 3, "separable", "none")],
    )  # fmt: skip
    placed = {position.name: block for position, block in small.placed_blocks(arch)}
    assert list(placed) == ["stem", "stage0_1", "stage0_2", "pool1", "stage1_2", "head"]
    assert placed["stage0_1"] == MorphBlock(12, 8, 8, 3, False, "convex")
    assert placed["stage0_2"] == MorphBlock(12, 8, 12, 5, True, "concat")
    assert placed["stage1_2"] == MorphBlock(6, 12, 4, 3, True, "none")
    net = small.build(arch)
    assert net.stage0_2.layer.conv.out_channels == 4  # the rest is the input
    assert placed["stage0_2"].params == 8 * 25 + 8 * 4 + 2 * 4
    assert placed["stage0_1"].params == 8 * 8 * 9 + 2 * 8 + 1


@pytest.mark.parametrize(
    ("layers", "same"),
    [
        ([(12, 3, "plain", "convex")], [(12, 3, "plain", "none")]),  # 8 channels enter
        ([(8, 3, "plain", "concat")], [(8, 3, "plain", "none")]),  # no filter would be left
        ([(4, 3, "plain", "concat")], [(4, 3, "plain", "none")]),
    ],
)
def test_skips_that_do_not_fit_are_none(small, layers, same):
    other = [(8, 3, "plain", "none")]
    assert arch_of(small, 8, layers, other) == arch_of(small, 8, same, other)


def test_places_without_a_layer_do_not_count(small):
    arch = np.array(arch_of(small, 8, [(8, 3, "plain", "none")], [(8, 3, "plain", "none")]))
    other = arch.copy()
    other[small.layer_slot(0, 0) : small.layer_slot(0, 0) + 4] = (3, 1, 1, 2)
    assert small.check(other) == tuple(arch)


@pytest.mark.parametrize("arguments", [{}, SMALL, {"in_channels": 1, "resolution": 8, "widths": (16, 32, 64, 128)}])
def test_start_networks(arguments):
    space = MorphSpace(**arguments)
    starts = rows_of(space.start_archs())
    params = [sum(p.numel() for p in space.build(arch).parameters()) for arch in starts]
    assert all(space.check(arch) == arch for arch in starts)
    assert len(set(starts)) == len(starts)
    if arguments is SMALL:  # too narrow for 15,000 parameters: what comes closest
        assert params == [max(sum(b.params for b in space.blocks(arch)) for arch in near(space))]
    else:
        assert len(starts) >= 3
        assert all(15_000 <= count <= 400_000 for count in params)
        assert max(params) > 4 * min(params)


def near(space: MorphSpace) -> list[Arch]:
    widest = [(16, 3, "plain", "none")] * 3
    return [arch_of(space, 16, widest, widest)]


def test_learned_numbers_are_in_the_trace():
    net = ConvexSkip(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), 0.25)
    ops = trace(net, [(4, 6, 6)]).ops
    assert [op.kind for op in ops] == ["conv", "relu", "scale", "scale", "add", "relu"]
    factors = [op.module for op in ops if op.kind == "scale"]
    assert [float(factor.value) for factor in factors if isinstance(factor, Factor)] == [0.75, 0.25]


fx.wrap("scale")


class Scaled(nn.Module):
    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(factor)

    def forward(self, x: Tensor) -> Tensor:
        return scale(x, self.factor)


class Product(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Scaled(torch.ones(4)), "operator factor"),
        (Product(torch.ones(4, 1, 1)), "operator factor"),
        (Product(torch.tensor(2.0)), "hwnas.trace.scale"),
    ],
)
def test_other_products_with_parameters_are_errors(net, message):
    with pytest.raises(SpaceError, match=message):
        trace(net, [(4, 6, 6)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_scale_is_a_product(layout):
    """With its gradients in both layouts: as a batch normalisation with an expanded weight they were garbage in one."""
    x = torch.randn(4, 16, 8, 8).to(memory_format=layout).requires_grad_()
    factor = nn.Parameter(torch.tensor(-0.7))
    torch.testing.assert_close(scale(x, factor), factor * x)
    found, expected = (torch.autograd.grad((y * y).sum(), (x, factor)) for y in (scale(x, factor), factor * x))
    torch.testing.assert_close(found, expected)


def test_networks_with_skips_learn_in_the_layout_of_training(small):
    """At a usual learning rate, in channels_last, with finite weights that stay moderate."""
    arch = arch_of(
        small, 8, [(8, 3, "plain", "convex")] * 3, [(8, 3, "separable", "convex"), (16, 3, "plain", "concat")]
    )
    torch.manual_seed(0)
    net = small.build(arch).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(10):
        optimizer.zero_grad()
        images = torch.randn(32, 3, 12, 12).contiguous(memory_format=torch.channels_last)
        nn.functional.cross_entropy(net(images), torch.arange(32) % 5).backward()
        optimizer.step()
    assert max(float(p.detach().abs().max()) for p in net.parameters()) < 3


def test_the_graph_is_the_one_the_exporter_writes(mixed):
    """So what is profiled is what runs: the same operators in the same order."""
    _, net = mixed
    written, exported = ([node.op_type for node in model.graph.node] for model in (
        onnx_model(graph_of(net, 4)), export_onnx(net, (3, 12, 12))))  # fmt: skip
    bookkeeping = {"ConstantOfShape", "Shape", "Gather", "Unsqueeze", "Constant", "Cast", "Squeeze"}
    exported = [name for name in exported if name not in bookkeeping]
    assert written.count("BatchNormalization") == 4
    # the exporter reads the batch to flatten by it: a Concat more
    assert Counter(exported) - Counter(written) in ({}, {"Concat": 1})
    assert not Counter(written) - Counter(exported)


def trained_like(space: MorphSpace, arch: Arch, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = space.build(arch)
    randomise(net)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, ConvexSkip):
                part.mix.uniform_(-0.3, 1.3)
        for _ in range(20):
            net.train()(torch.randn(16, *space.input_shape(arch)))
    return net.eval()


@pytest.fixture(scope="module")
def mixed(small) -> tuple[Arch, nn.Module]:
    """Every kind of layer and skip."""
    arch = arch_of(
        small, 8,
        [(8, 3, "plain", "convex"), (8, 5, "separable", "convex"), (16, 3, "plain", "concat")],
        [(8, 3, "plain", "none"), (12, 5, "separable", "concat"), (12, 3, "separable", "none")],
    )  # fmt: skip
    net = trained_like(small, arch)
    assert sum(isinstance(part, (ConvexSkip, ConcatSkip)) for part in net.modules()) == 4
    return arch, net


def images_of(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(7))


def differs(net: nn.Module, found: np.ndarray, images: Tensor) -> float:
    """Largest difference, as a part of the spread of the logits over images."""
    with torch.no_grad():
        expected = net(images).numpy()
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / expected.std(axis=0).max())


def graph_of(net: nn.Module, batch: int, precision: str = "fp32") -> Graph:
    ranges = measure_ranges(net, images_of(64), [(3, 12, 12)]) if precision == "int8" else None
    return plain_graph(net, [(3, 12, 12)], batch=batch, ranges=ranges)


def run(model: bytes, images: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return found


def test_onnx_of_a_trained_network(mixed):
    _, net = mixed
    images = images_of()
    exported = export_onnx(net, (3, 12, 12)).SerializeToString()
    for precision, limit in (("fp32", 1e-4), ("fp16", 2e-2), ("int8", 0.7)):
        written = onnx_model(graph_of(net, 4, precision), precision).SerializeToString()
        assert differs(net, run(written, images), images) < limit
    assert differs(net, run(exported, images), images) < 1e-4
    alone = np.concatenate([run(exported, image[None]) for image in images])  # its batch is free
    assert differs(net, alone, images) < 1e-4


def test_learned_numbers_matter(mixed):
    """With other numbers the same file would be wrong, so the tests of files see them."""
    _, net = mixed
    images = images_of()
    with torch.no_grad():
        before = net(images).numpy()
    mixes = [part.mix for part in net.modules() if isinstance(part, ConvexSkip)]
    kept = [float(mix.detach()) for mix in mixes]
    with torch.no_grad():
        for mix in mixes:
            mix += 0.1
        assert differs(net, before, images) > 0.01
        for mix, value in zip(mixes, kept, strict=True):
            mix.fill_(value)


def test_tflite_of_a_trained_network(mixed):
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed: pip install hwnas[litert]")
    from ai_edge_litert.interpreter import Interpreter

    from hwnas.graphs.tflite import tflite_model

    _, net = mixed
    images = images_of(1)
    for precision, limit in (("fp32", 1e-4), ("int8", 0.7)):
        made = Interpreter(model_content=tflite_model(graph_of(net, 1, precision), precision), num_threads=1)
        made.allocate_tensors()
        made.set_tensor(made.get_input_details()[0]["index"], images.numpy().transpose(0, 2, 3, 1).copy())
        made.invoke()
        with torch.no_grad():
            spread = float(net(images_of(64)).std(0).max())
            difference = np.abs(made.get_tensor(made.get_output_details()[0]["index"]) - net(images).numpy()).max()
        assert difference < limit * spread


def test_ncnn_of_a_trained_network(mixed, tmp_path: Path):
    runtime = pytest.importorskip("hwprof.runtimes.ncnn", reason="needs ncnn: pip install ncnn").NcnnRuntime
    _, net = mixed
    images = images_of(1)
    path = tmp_path / "net.ncnn.param"
    ncnn_files.write(graph_of(net, 1), path, "fp32")
    model = runtime().load(path, Target(runtime="ncnn", precision="fp32"), profile_nodes=False)
    (found,) = model.infer([images.numpy()])
    model.close()
    with torch.no_grad():
        assert np.abs(found.reshape(1, -1) - net(images).numpy()).max() < 1e-4 * net(images_of(64)).std(0).max()


def test_neighbours_are_steps(small):
    arch = arch_of(small, 8, [(8, 3, "plain", "none")], [(8, 3, "plain", "none")])
    found = rows_of(small.neighbours(arch))
    plain = [(8, 3, "plain", "none")]

    def step(first, second=plain, stem=8):
        return arch_of(small, stem, first, second)

    expected = {
        *(step([(8, k, conv, "none"), *plain]) for k in (3, 5) for conv in ("plain", "separable")),
        *(step([*plain, (8, k, conv, "none")]) for k in (3, 5) for conv in ("plain", "separable")),
        *(step(plain, [(8, k, conv, "none"), *plain]) for k in (3, 5) for conv in ("plain", "separable")),
        *(step(plain, [*plain, (8, k, conv, "none")]) for k in (3, 5) for conv in ("plain", "separable")),
        *(step([(w, 3, "plain", "none")]) for w in (4, 12)),
        *(step(plain, [(w, 3, "plain", "none")]) for w in (4, 12)),
        *(step(plain, stem=w) for w in (4, 12)),
        step([(8, 3, "separable", "none")]), step(plain, [(8, 3, "separable", "none")]),
        step([(8, 5, "plain", "none")]), step(plain, [(8, 5, "plain", "none")]),
        step([(8, 3, "plain", "convex")]), step(plain, [(8, 3, "plain", "convex")]),
        step([(16, 3, "plain", "concat")]), step(plain, [(16, 3, "plain", "concat")]),
    }  # fmt: skip
    assert set(found) == expected
    assert len(found) == len(expected)


def test_layers_tied_by_skips_change_together(small):
    arch = arch_of(
        small, 4,
        [(4, 3, "plain", "convex"), (8, 3, "plain", "concat"), (8, 3, "plain", "convex")],
        [(12, 3, "plain", "concat"), (4, 3, "plain", "none")],
    )  # fmt: skip
    wider = arch_of(
        small, 8,
        [(8, 3, "plain", "convex"), (12, 3, "plain", "concat"), (12, 3, "plain", "convex")],
        [(16, 3, "plain", "concat"), (4, 3, "plain", "none")],
    )  # fmt: skip
    found = rows_of(small.neighbours(arch))
    assert wider in found
    assert arch in rows_of(small.neighbours(wider))  # and pruning is the way back
    removed = arch_of(
        small, 4,
        [(4, 3, "plain", "convex"), (4, 3, "plain", "convex")],
        [(8, 3, "plain", "concat"), (4, 3, "plain", "none")],
    )  # fmt: skip
    assert removed in found


def test_neighbours_are_canonical_others_and_lead_on(small):
    for row in rows_of(small.sample(20, np.random.default_rng(1))):
        found = small.neighbours(row)
        assert (small.canonical(found.copy()) == found).all()
        assert len(np.unique(found, axis=0)) == len(found) > 10
        assert not (found == row).all(axis=1).any()
    arch, rng, seen = rows_of(small.sample(1, np.random.default_rng(2)))[0], np.random.default_rng(3), set()
    for _ in range(300):
        near_by = small.neighbours(arch)
        seen |= set(rows_of(near_by))
        arch = tuple(rng.choice(near_by).tolist())
    depths = {(arch[small.depth_slot(0)], arch[small.depth_slot(1)]) for arch in seen}
    assert depths == {(first, second) for first in range(3) for second in range(3)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stages", 0, "stages must be a positive integer, got 0"),
        ("num_classes", True, "num_classes must be a positive integer"),
        ("widths", [], "widths must be a list of positive integers"),
        ("widths", [16, 8], "each once and rising"),
        ("widths", [8, 8], "each once and rising"),
        ("widths", 8, "widths must be"),
        ("kernels", [2], "odd and at least 3"),
        ("kernels", [1, 3], "odd and at least 3"),
        ("resolution", 3, "cannot be halved 2 times"),
    ],
)
def test_bad_arguments_are_named(name, value, message):
    with pytest.raises(SpaceError, match=message):
        MorphSpace(**{name: value})
