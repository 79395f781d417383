from __future__ import annotations

import pytest
import torch
from torch import nn

from hwnas.blocks import (
    ACTIVATIONS,
    ConvBlock,
    HeadBlock,
    MBConvBlock,
    conv_output_size,
    make_activation,
    make_divisible,
)
from hwnas.errors import SpaceError

CASES = [
    (ConvBlock(9, 3, 8, 3, 2, "hardswish"), (8, 5, 5)),
    (ConvBlock(9, 3, 8, 5, 3, ""), (8, 3, 3)),
    (MBConvBlock(8, 16, 16, 3, 1, 16, "relu", False), (16, 8, 8)),
    (MBConvBlock(7, 8, 16, 5, 2, 24, "silu", True), (16, 4, 4)),
    (MBConvBlock(8, 16, 16, 7, 1, 64, "relu6", True), (16, 8, 8)),
    (HeadBlock(4, 16, 32, 10, "hardswish"), (10,)),
]


@pytest.mark.parametrize(("block", "shape"), CASES, ids=[block.key for block, _ in CASES])
def test_blocks_compute_what_they_count(block, shape):
    module = block.module().eval()
    assert module(torch.zeros(2, *block.input_shapes[0])).shape == (2, *shape)
    assert block.trace.ops[-1].output_shape == (1, *shape)
    assert block.params == sum(parameter.numel() for parameter in module.parameters())
    assert block.macs == sum(op.macs for op in block.trace.ops) > 0


def test_macs_and_parameters_by_hand():
    block = MBConvBlock(8, 16, 24, 3, 2, 64, "relu", True)
    assert block.macs == 64 * 16 * 64 + 16 * 64 * 9 + 2 * 64 * 16 + 16 * 64 * 24
    norms = 2 * (64 + 64 + 24)
    assert block.params == 16 * 64 + 64 * 9 + (64 * 16 + 16) + (16 * 64 + 64) + 64 * 24 + norms
    head = HeadBlock(4, 16, 32, 10, "relu")
    assert (head.macs, head.params) == (16 * 32 + 320, 16 * 32 + 320 + 10)


def test_the_input_is_added_only_where_the_shape_is_kept():
    def adds(**changes):
        fields = {"size": 8, "in_channels": 8, "out_channels": 8, "kernel": 3, "stride": 1, "mid_channels": 16}
        block = MBConvBlock(**fields | changes, activation="relu", se=False)
        return [op.kind for op in block.trace.ops].count("add")

    assert (adds(), adds(stride=2), adds(out_channels=16)) == (1, 0, 0)


def test_no_expansion_at_equal_width():
    names = dict(MBConvBlock(8, 16, 24, 3, 1, 16, "relu", False).module().layers.named_children())
    assert list(names) == ["depthwise", "project"]


def test_keys_are_readable_and_tell_blocks_apart():
    assert ConvBlock(8, 3, 16, 3, 2, "relu").key == (
        "conv:size=8,in_channels=3,out_channels=16,kernel=3,stride=2,activation=relu"
    )
    assert MBConvBlock(8, 8, 8, 3, 1, 24, "relu", True).key.endswith("mid_channels=24,activation=relu,se=1")
    assert MBConvBlock(8, 8, 8, 3, 1, 24, "relu", True) == MBConvBlock(8, 8, 8, 3, 1, 24, "relu", True)
    assert len({block.key for block, _ in CASES}) == len(CASES)


def test_counting_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    assert ConvBlock(8, 5, 16, 3, 2, "relu").params == 5 * 16 * 9 + 32
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("channels", "rounded"),
    [(1, 8), (8, 8), (11.9, 16), (12, 16), (18, 24), (19, 24), (20, 24), (16.0, 16), (27, 32), (37, 40), (91.7, 88)],
)
def test_make_divisible(channels, rounded):
    assert make_divisible(channels) == rounded
    assert rounded % 8 == 0
    assert rounded >= 0.9 * channels


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_output_size_is_that_of_the_convolution(kernel, stride):
    conv = nn.Conv2d(1, 1, kernel, stride, kernel // 2)
    for size in range(1, 12):
        assert conv(torch.zeros(1, 1, size, size)).shape[-1] == conv_output_size(size, stride)


def test_activations_by_name():
    assert {name: type(make_activation(name)) for name in ACTIVATIONS} == ACTIVATIONS
    with pytest.raises(SpaceError, match=r"unknown activation 'gelu'; known: .*'hardswish'"):
        make_activation("gelu")
