"""Sorting channels keeps the function of the networks that were trained, and puts important channels first."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from supernet.spaces import cells, mobile, residual
from torch import Tensor

from hwnas.blocks import HeadBlock, MBConvBlock
from hwnas.space import Arch, SearchSpace, rows_of
from hwnas.spaces import make_space
from hwnas.spaces.nasbench201_blocks import ReductionBlock
from hwnas.supernet.elastic import Supernet
from hwnas.supernet.extremes import smallest_arch
from hwnas.supernet.sorting import hidden_channels, sort_channels
from hwnas.supernet.stages import Stage, StageSampler, stages_of

STAGES: dict[str, Any] = {
    "resolutions": [8], "width_mults": [0.5, 1.0], "width_per_stage": True, "depths": [0, 1], "base_depths": [1, 2],
    "expands": [0.5, 0.75, 1.0], "block": "basic", "stem_widths": [16, 24], "stem_stride": 1, "max_pool": True,
    "stage_widths": [16, 48], "stage_strides": [1, 2], "in_channels": 1, "num_classes": 10,
}  # fmt: skip
SPACES = {"mobilenetv3": mobile(), "resnet": residual(), "a width per stage": make_space("resnet", STAGES)}
LARGEST = Stage("largest", 1.0)


def made(space: SearchSpace) -> Supernet:
    """A supernet whose normalisations differ by channel, under which wrong orders could hide."""
    supernet, generator = Supernet(space).train(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return supernet


def logits(supernet: Supernet, archs: list[Arch]) -> list[Tensor]:
    space, generator = supernet.space, torch.Generator().manual_seed(0)
    with torch.no_grad():
        return [supernet(torch.randn(4, *space.input_shape(arch), generator=generator), arch) for arch in archs]


@pytest.mark.parametrize("name", SPACES)
def test_networks_that_were_trained_stay_the_same_function_and_smaller_ones_do_not(name: str) -> None:
    space = SPACES[name]
    stages = stages_of("progressive", space)
    for before, stage in itertools.pairwise(stages):
        if stage.sort:
            supernet = made(space)
            trained = rows_of(StageSampler(space, before)(4, np.random.default_rng(0)))
            archs = [*trained, smallest_arch(space)]
            *expected, other = logits(supernet, archs)
            sort_channels(supernet, before)
            *found, smallest = logits(supernet, archs)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(smallest, other, rtol=1e-4, atol=1e-4)
    # if only the largest had been trained, the last one's networks, of two expansions, would not all stay the same
    assert stages[-2].name == "expand 1"
    sort_channels(supernet, LARGEST)
    assert not all(torch.allclose(*pair, rtol=1e-3) for pair in zip(logits(supernet, trained), expected, strict=True))


def importance(*readers: Tensor) -> Tensor:
    return torch.stack([reader.detach().abs().flatten(2).sum(2).sum(0) for reader in readers]).sum(0)


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("mobilenetv3", ["stage1_1.0.weights.layers.project.conv.weight"]),  # inside of a block
        ("mobilenetv3", ["head.0.weights.hidden.weight"]),  # between two
        ("mobilenetv3", ["stage1_1.0.weights.layers.expand.conv.weight", "final.0.weights.conv.weight"]),
        (
            "a width per stage",  # a block that can be skipped, and both convolutions that read the next stage's input
            ["stage0_1.0.weights.path.first.conv.weight", "stage1_0.0.weights.path.first.conv.weight",
             "stage1_0.0.weights.shortcut.project.conv.weight"],
        ),
    ],
)  # fmt: skip
def test_the_channels_that_are_read_most_come_first(name: str, readers: list[str]) -> None:
    supernet = made(SPACES[name])
    weights = [supernet.get_parameter(f"shared.{reader}").flatten(2) for reader in readers]
    before = importance(*weights)
    sort_channels(supernet, LARGEST)
    weights = [supernet.get_parameter(f"shared.{reader}").flatten(2) for reader in readers]
    assert before.diff().max() > 0
    torch.testing.assert_close(importance(*weights), before.sort(descending=True).values)


def test_sizes_that_were_trained_keep_their_channels() -> None:
    supernet, name = made(SPACES["mobilenetv3"]), "shared.stage1_1.0.weights.layers.project.conv.weight"
    before = importance(supernet.get_parameter(name).flatten(2))
    sort_channels(supernet, Stage("expand 1", 1.0, free={"expand": 2}))
    after = importance(supernet.get_parameter(name).flatten(2))
    parts = [part.sort(descending=True).values for part in before.split([32, 32])]
    torch.testing.assert_close(after, torch.cat(parts))
    assert not torch.equal(after, before.sort(descending=True).values)


def test_what_is_no_choice_stays_in_its_order() -> None:
    """Neither channels of one size between blocks, nor anything of cells."""
    for space in (mobile(width_mults=[1.0]), cells()):
        supernet = made(space)
        before = {name: value.clone() for name, value in supernet.state_dict().items()}
        sort_channels(supernet, LARGEST)
        stem = next(name for name in before if name.startswith("shared.stem"))
        assert torch.equal(before[stem], supernet.state_dict()[stem])


def test_hidden_channels_are_found_in_blocks_of_any_kind() -> None:
    ((name, axes),) = hidden_channels(MBConvBlock(8, 8, 16, 5, 2, 32, "relu", True)).items()
    assert name == "mid_channels"
    assert axes["layers.depthwise.conv.weight"] == (0,)
    assert axes["layers.project.conv.weight"] == (1,)
    assert axes["layers.se.gate.reduce.weight"] == (1,)
    assert "layers.se.gate.reduce.bias" not in axes
    found = hidden_channels(HeadBlock(4, 16, 32, 10, "relu"))
    assert found == {"hidden": {"hidden.weight": (0,), "classifier.weight": (1,)}}
    assert hidden_channels(ReductionBlock(8, 8, 16)) == {}
    # without an expansion the hidden channels are those of the input, which other blocks made
    assert hidden_channels(MBConvBlock(8, 16, 16, 3, 1, 16, "relu", False)) == {}
