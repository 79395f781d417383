"""Which part of a larger block's weights a block has."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hwnas.blocks import Block, ConvBlock, MBConvBlock
from hwnas.errors import SpaceError
from hwnas.supernet.sharing import Part, kernel_sizes, kind_of, largest_block, meta_module, parts_of


def mbconv(kernel: int, mid: int, *, se: bool = False, stride: int = 1) -> MBConvBlock:
    return MBConvBlock(8, 8, 8, kernel, stride, mid, "relu", se)


def test_the_largest_block_has_the_largest_of_every_number() -> None:
    assert largest_block([mbconv(7, 16), mbconv(3, 32)]) == mbconv(7, 32)


@pytest.mark.parametrize("other", [mbconv(3, 16, se=True), ConvBlock(8, 8, 8, 3, 1, "relu")])
def test_blocks_of_another_kind_share_nothing(other: Block) -> None:
    assert kind_of(mbconv(3, 16)) == kind_of(mbconv(7, 64))
    assert kind_of(mbconv(3, 16)) != kind_of(other)


def test_parts_are_leading_channels_and_central_filters() -> None:
    blocks = [mbconv(7, 32), mbconv(5, 16), mbconv(3, 16)]
    modules = [meta_module(block) for block in blocks]
    kernels = kernel_sizes(modules)
    assert kernels == {"layers.depthwise.conv.weight": (7, 5, 3)}
    parts = parts_of(modules[2], modules[0], kernels)
    assert parts["layers.expand.conv.weight"] == Part((16, 8, 1, 1))
    assert parts["layers.depthwise.conv.weight"] == Part((16, 1, 3, 3), (7, 5, 3))


def test_a_filter_goes_through_the_matrix_of_every_step() -> None:
    whole = torch.arange(2 * 25.0).reshape(2, 1, 5, 5)
    swap = torch.zeros(9, 9)
    swap[torch.arange(9), torch.arange(8, -1, -1)] = 1  # turns a filter by half a turn
    found = Part((1, 1, 3, 3), (5, 3)).of(whole, {"5to3": swap})
    torch.testing.assert_close(found, whole[:1, :, 1:4, 1:4].flip(2, 3))


def test_a_part_without_filters_is_a_view() -> None:
    whole = torch.zeros(4, 4, 1, 1)
    Part((2, 3, 1, 1)).of(whole, {}).fill_(1)
    assert int(whole.sum()) == 6


@pytest.mark.parametrize("sizes", [((3, 3), (4, 4)), ((3, 3), (3, 5))])
def test_filters_without_a_common_centre_are_refused(sizes: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(SpaceError, match="one centre"):
        kernel_sizes([nn.Conv2d(2, 2, size) for size in sizes])


@dataclass(frozen=True)
class Odd(Block):
    """A block whose smaller form has a parameter that the larger one lacks."""

    width: int

    def module(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(self.in_channels, self.width, 1, bias=self.width < 4))


def test_what_the_largest_block_lacks_is_said() -> None:
    small, large = Odd(4, 2, 2), Odd(4, 2, 4)
    with pytest.raises(SpaceError, match=r"0\.bias of shape \(2,\), the largest block at its place nothing"):
        parts_of(meta_module(small), meta_module(large), {})
