"""Sorting channels keeps the function of the largest network, and puts important channels first."""

from __future__ import annotations

import pytest
import torch
from supernet.spaces import mobile, residual

from hwnas.blocks import HeadBlock, MBConvBlock
from hwnas.space import SearchSpace
from hwnas.spaces.nasbench201_blocks import ReductionBlock
from hwnas.supernet.elastic import Supernet
from hwnas.supernet.extremes import largest_arch, smallest_arch
from hwnas.supernet.sorting import hidden_channels, sort_channels


@pytest.mark.parametrize("space", [mobile(), residual()], ids=lambda space: space.name)
def test_the_largest_network_stays_the_same_function_and_smaller_ones_do_not(space: SearchSpace) -> None:
    supernet = Supernet(space).train()
    x = {arch: torch.randn(4, *space.input_shape(arch)) for arch in (largest_arch(space), smallest_arch(space))}
    before = {arch: supernet(images, arch) for arch, images in x.items()}
    sort_channels(supernet)
    torch.testing.assert_close(supernet(x[largest_arch(space)], largest_arch(space)), before[largest_arch(space)])
    assert not torch.allclose(supernet(x[smallest_arch(space)], smallest_arch(space)), before[smallest_arch(space)])


def test_the_channels_that_the_projection_reads_most_come_first() -> None:
    supernet = Supernet(mobile())
    name = "shared.stage1_1.0.weights.layers.project.conv.weight"
    weight = supernet.get_parameter(name)
    before = weight.detach().abs().sum(dim=(0, 2, 3))
    sort_channels(supernet)
    after = weight.detach().abs().sum(dim=(0, 2, 3))
    torch.testing.assert_close(after, before.sort(descending=True).values)


def test_hidden_channels_are_found_in_blocks_of_any_kind() -> None:
    ((channels, axes),) = hidden_channels(MBConvBlock(8, 8, 16, 5, 2, 32, "relu", True))
    assert channels == 32
    assert axes["layers.depthwise.conv.weight"] == (0,)
    assert axes["layers.project.conv.weight"] == (1,)
    assert axes["layers.se.gate.reduce.weight"] == (1,)
    assert "layers.se.gate.reduce.bias" not in axes
    ((channels, axes),) = hidden_channels(HeadBlock(4, 16, 32, 10, "relu"))
    assert (channels, axes) == (32, {"hidden.weight": (0,), "classifier.weight": (1,)})
    assert hidden_channels(ReductionBlock(8, 8, 16)) == []
    # without an expansion the hidden channels are those of the input, which other blocks made
    assert hidden_channels(MBConvBlock(8, 16, 16, 3, 1, 16, "relu", False)) == []
