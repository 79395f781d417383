from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hwnas.errors import DataError, SpaceError
from hwnas.graphs.plain import plain_graph
from hwnas.graphs.ranges import measure_ranges
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.testing.networks import randomise
from hwnas.trace import trace

SHAPE = (3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5),
                         nn.Conv2d(4, 2, 1))  # fmt: skip
    randomise(made)
    return made


def outputs(net: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What each layer computes, in evaluation mode."""
    found, net = [images], copy.deepcopy(net).eval()
    with torch.no_grad():
        for layer in net:
            found.append(layer(found[-1].clone()))
    return found


def test_every_tensor_has_its_range_though_layers_work_in_place():
    net, images = network(), torch.randn(5, *SHAPE)
    ranges = measure_ranges(net, images, [SHAPE])
    for name, tensor in zip(["input_1", "_0", "_1", "_2", "_3", "_4"], outputs(net, images), strict=True):
        assert ranges[name] == pytest.approx((float(tensor.min()), float(tensor.max())), rel=1e-5)


def test_all_images_count():
    net, images = nn.Sequential(nn.ReLU()), torch.zeros(70, *SHAPE)
    images[0], images[69] = -2, 5
    assert measure_ranges(net, images, [SHAPE]) == {"input_1": (-2, 5), "_0": (0, 5)}


def test_rare_values_are_left_out():
    images = torch.linspace(-1, 1, 10_000).reshape(1, 1, 100, 100)
    images[0, 0, 0, 0], images[0, 0, 99, 99] = -1000, 1000
    low, high = measure_ranges(nn.Sequential(nn.ReLU()), images, [(1, 100, 100)])["input_1"]
    assert (low, high) == pytest.approx((-1, 1), abs=1e-3)


def test_the_graph_takes_the_ranges_also_where_a_norm_is_folded():
    net, images = network(), torch.randn(5, *SHAPE)
    ranges = measure_ranges(net, images, [SHAPE])
    graph = plain_graph(net.eval(), [SHAPE], ranges=ranges)
    assert [node.kind for node in graph.nodes] == ["conv", "relu", "conv"]
    taken = [graph.ranges[name] for name in (*graph.inputs, *(node.output for node in graph.nodes))]
    assert taken == [ranges[name] for name in ("input_1", "_1", "_2", "_4")]


def test_every_tensor_of_a_trace_is_measured():
    space = NasBench201Space(channels=4, cells=1, resolution=8, num_classes=5)
    net = space.build((1, 2, 3, 4, 3, 2))
    traced = trace(net, [(3, 8, 8)])
    assert measure_ranges(net, torch.randn(2, 3, 8, 8), [(3, 8, 8)]).keys() >= {
        *traced.inputs, *(op.output for op in traced.ops)
    }  # fmt: skip


def test_the_module_is_left_as_it_was():
    net = network().train()
    net[1].eval()  # frozen statistics, as in fine-tuning
    called = []
    net[0].register_forward_hook(lambda *_: called.append(1))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measure_ranges(net, torch.randn(40, *SHAPE), [SHAPE])
    assert [layer.training for layer in (net, *net)] == [True, True, False, True, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert len(net[0]._forward_hooks) == 1
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    net(torch.randn(1, *SHAPE)).sum().backward()


def test_the_mode_comes_back_after_an_error_too():
    net = network().train()
    nn.init.constant_(net[0].weight, float("nan"))
    with pytest.raises(DataError, match="not finite at _0"):
        measure_ranges(net, torch.randn(2, *SHAPE), [SHAPE])
    assert net.training
    assert net[1].training


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 9), r"images \(n, \*\(3, 8, 8\)\), got \(2, 3, 8, 9\)"),
        (torch.zeros(3, 8, 8), "got"),
        (torch.zeros(0, 3, 8, 8), r"got \(0, 3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), float("inf")), "not finite at input_1"),
    ],
)
def test_images_that_calibrate_nothing_are_refused(images, message):
    with pytest.raises(DataError, match=message):
        measure_ranges(network(), images, [SHAPE])


def test_modules_that_cannot_be_calibrated_are_refused():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(DataError, match="networks with one input"):
        measure_ranges(Two(), torch.zeros(1, *SHAPE), [SHAPE, SHAPE])
    with pytest.raises(SpaceError, match="GELU"):
        measure_ranges(nn.Sequential(nn.GELU()), torch.zeros(1, *SHAPE), [SHAPE])
