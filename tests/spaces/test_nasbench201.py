from __future__ import annotations

import csv
import gzip
import itertools

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from hwnas.errors import SpaceError
from hwnas.graphs.onnx import onnx_model
from hwnas.graphs.plain import plain_graph
from hwnas.latency.index import BlockIndex
from hwnas.spaces.nasbench201 import EDGES, NasBench201Space
from hwnas.spaces.nasbench201_blocks import ZeroBlock
from hwnas.spaces.nasbench201_names import arch_of_index, cell_string, official_index, parse_cell_string
from hwnas.trace import count_params, trace

ALL = np.array(list(itertools.product(range(5), repeat=6)))
DEAD = (0, 0, 0, 0, 0, 0)
CONV1, CONV3, POOL = 2, 3, 4


@pytest.fixture(scope="module")
def small():
    return NasBench201Space(channels=4, cells=2, resolution=8, num_classes=3)


# the first rows and the most accurate row of the public table: index, cell, parameters in millions
PUBLIC = [
    (0, "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|", 0.129306),
    (1, "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|", 0.802426),
    (2, "|avg_pool_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|avg_pool_3x3~0|avg_pool_3x3~1|avg_pool_3x3~2|", 0.559386),
    (3, "|avg_pool_3x3~0|+|skip_connect~0|none~1|+|none~0|none~1|skip_connect~2|", 0.073306),
]


@pytest.mark.parametrize(("index", "text", "params_m"), PUBLIC)
def test_numbers_strings_and_sizes_of_the_public_table(index, text, params_m):
    arch = arch_of_index(index)
    assert cell_string(arch) == text
    assert parse_cell_string(text) == arch
    assert official_index(arch) == index
    with torch.device("meta"):
        assert count_params(NasBench201Space().build(arch)) == round(params_m * 1e6)


@pytest.mark.shared_data
def test_every_cell_of_the_public_table(shared_data):
    with gzip.open(shared_data / "nb201" / "nb201_cifar10.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    archs = np.array([arch_of_index(int(row["index"])) for row in rows])
    assert len(rows) == 5**6
    assert ["".join(map(str, arch)) for arch in archs] == [row["ops"] for row in rows]
    assert [cell_string(arch) for arch in archs] == [row["arch_str"] for row in rows]

    space = NasBench201Space()
    index = BlockIndex(space)
    params = index.costs(np.array([block.params for block in index.blocks], dtype=float))
    macs = index.costs(np.array([0 if isinstance(b, ZeroBlock) else b.macs for b in index.blocks], dtype=float))
    public_params = np.array([float(row["params_m_c10"]) for row in rows]) * 1e6
    public_flops = np.array([float(row["flops_m_c10"]) for row in rows]) * 1e6
    convs = ((archs == CONV1) | (archs == CONV3)).sum(axis=1)
    pools = (archs == POOL).sum(axis=1)
    # the table counts useless edges, which `canonical` takes away
    np.testing.assert_allclose(index.total(archs, params), public_params, atol=0.6)
    canonical = space.canonical(archs)
    fewer = index.total(canonical, params) < index.total(archs, params)
    removed_conv = (((archs == CONV1) | (archs == CONV3)) & (canonical == 0)).any(axis=1)
    assert np.array_equal(fewer, removed_conv)
    # its FLOPs are multiply-accumulates and, per output, 3 for ReLU and batch normalisation, 9 for a 3x3 pooling
    outputs = 5 * (16 * 32**2 + 32 * 16**2 + 64 * 8**2)
    beyond = public_flops - index.total(archs, macs) - 3 * outputs * convs - 9 * outputs * pools
    np.testing.assert_allclose(beyond, beyond[0], atol=2)
    assert 0 < beyond[0] < 0.2e6


def test_index_counts_all_cells_once():
    assert [official_index(arch) for arch in map(arch_of_index, range(0, 5**6, 97))] == list(range(0, 5**6, 97))
    assert len({arch_of_index(index) for index in range(5**6)}) == 5**6


@pytest.mark.parametrize(
    "call",
    [
        lambda: arch_of_index(15625),
        lambda: arch_of_index(-1),
        lambda: official_index((0, 1, 2)),
        lambda: cell_string((0, 0, 0, 0, 0, 5)),
        lambda: parse_cell_string("|none~0|"),
        lambda: parse_cell_string(PUBLIC[0][1].replace("avg_pool_3x3", "max_pool_3x3")),
        lambda: parse_cell_string(PUBLIC[0][1].replace("skip_connect~2", "skip_connect~1")),
        lambda: parse_cell_string(PUBLIC[0][1].replace("+", "")),
    ],
)
def test_what_is_no_cell(call):
    with pytest.raises(SpaceError, match="cell"):
        call()


def test_canonical_keeps_the_edges_on_a_path(small):
    paths = [[3], [0, 4], [1, 5], [0, 2, 5]]  # all ways from node 0 to node 3, by slot
    useful = np.zeros(ALL.shape, dtype=bool)
    for path in paths:
        whole = (ALL[:, path] != 0).all(axis=1)
        useful[np.ix_(whole, path)] = True
    canonical = small.canonical(ALL)
    np.testing.assert_array_equal(canonical, np.where(useful, ALL, 0))
    np.testing.assert_array_equal(small.canonical(canonical), canonical)
    # the public tables of zero-cost scores keep the 9,445 cells without useless edges
    assert (canonical == ALL).all(axis=1).sum() == 9445
    assert (canonical == 0).all(axis=1).sum() == 341


def reference_cell(cell, arch, x):
    """The cell as the paper says it, useless edges included, with the weights of `cell` where it has them."""
    nodes = [x]
    for target in (1, 2, 3):
        total = torch.zeros_like(x)
        for slot, (source, to) in enumerate(EDGES):
            if to == target:
                h = nodes[source]
                name = f"edge{source}{target}"
                if arch[slot] == 0:
                    h = torch.zeros_like(h)
                elif arch[slot] > 1:
                    part = (
                        getattr(cell, name) if hasattr(cell, name) else nn.Conv2d(x.shape[1], x.shape[1], 1, bias=False)
                    )
                    h = part(h)
                total = total + h
        nodes.append(total)
    return nodes[3]


@pytest.mark.parametrize("seed", range(30))
def test_networks_compute_what_the_paper_says(small, seed):
    torch.manual_seed(seed)
    arch = tuple(int(op) for op in np.random.default_rng(seed).choice(5, size=6, p=[0.4, 0.15, 0.15, 0.15, 0.15]))
    net, x = small.build(arch).eval(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        h = net.stem(x)
        for stage in range(3):
            h = getattr(net, f"reduce{stage}")(h) if stage else h
            for cell in range(2):
                h = reference_cell(getattr(net, f"stage{stage}_cell{cell}", None), arch, h)
        torch.testing.assert_close(net(x), net.head(h))
    assert net(x).shape == (2, 3)


@pytest.mark.parametrize("arch", [DEAD, (0, 0, 0, 1, 0, 0), (3, 2, 4, 1, 3, 2), (1, 1, 1, 1, 1, 1), (3, 3, 3, 3, 3, 3)])
def test_all_computing_belongs_to_blocks(small, arch):
    net = small.build(arch)
    placed = small.placed_blocks(arch)
    traced = trace(net, [small.input_shape(arch)])
    for op in traced.ops:
        assert any(op.path == p.name or op.path.startswith(p.name + ".") for p, _ in placed), op
    assert traced.macs == sum(block.macs for _, block in placed)
    assert count_params(net) == sum(block.params for _, block in placed)
    for position, block in placed:
        module = net.get_submodule(position.name)
        assert [(op.kind, op.input_shapes) for op in trace(module, block.input_shapes).ops] == [
            (op.kind, op.input_shapes) for op in block.trace.ops
        ]
    x = torch.rand(2, 3, 8, 8)
    model = onnx_model(plain_graph(net.eval(), [small.input_shape(arch)], positions=small.positions, batch=2))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(logits, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_network_without_any_path_is_constant_and_trains(small):
    assert small.check((3, 0, 0, 0, 0, 3)) == DEAD
    net = small.build(DEAD)
    logits = net(torch.rand(4, 3, 8, 8))
    assert torch.equal(logits, logits[:1].expand(4, 3))
    logits.square().sum().backward()
    assert net.head.classifier.bias.grad.any()
    assert not net.stem.conv.weight.grad.any()


def test_the_only_residual_block_is_the_reduction():
    net = NasBench201Space(channels=4, cells=1, resolution=8).build((0, 0, 0, 1, 0, 0)).eval()
    assert list(dict(net.named_children())) == ["stem", "reduce1", "reduce2", "head"]  # the cells are identities
    x = torch.rand(2, 4, 8, 8)
    block = net.reduce1
    pooled = x.reshape(2, 4, 4, 2, 4, 2).mean(dim=(3, 5))
    expected = torch.einsum("oi,nihw->nohw", block.shortcut[1].weight[:, :, 0, 0], pooled) + block.main(x)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 30}, "multiple of 4"),
        ({"channels": 0}, "channels"),
        ({"cells": 1.5}, "cells must be a positive"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(SpaceError, match=message):
        NasBench201Space(**arguments)


def test_arguments_rebuild_the_space():
    space = NasBench201Space(num_classes=7, channels=8, cells=1, resolution=16, in_channels=1)
    assert NasBench201Space(**space.config).positions == space.positions
    assert space.build((3, 3, 3, 3, 3, 3))(torch.rand(2, *space.input_shape(DEAD))).shape == (2, 7)
    assert space.size == 15625
