"""Residual networks against torchvision's: parameters, MACs and logits; and what weight sharing needs of the blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from hwnas.errors import SpaceError
from hwnas.latency.fusion import contextual
from hwnas.spaces import make_space
from hwnas.spaces.resnet import ResNetSpace
from hwnas.spaces.resnet_blocks import average_pool
from hwnas.testing.networks import randomise
from hwnas.testing.spaces import check_space
from hwnas.trace import count_params

STANDARD = {
    "resolutions": (224,), "width_mults": (1.0,), "depths": (0,), "stem_widths": (64,), "stem_kernel": 7,
    "stem_depths": (0,),
}  # fmt: skip
RESNET50 = STANDARD | {"base_depths": (3, 4, 6, 3), "expands": (0.25,)}
RESNET18 = STANDARD | {
    "base_depths": (2, 2, 2, 2), "expands": (1.0,), "block": "basic", "stage_widths": (64, 128, 256, 512),
}  # fmt: skip
RESNET20 = {
    "resolutions": (32,), "width_mults": (0.5, 1.0), "depths": (0, 1), "base_depths": (2, 2, 2), "expands": (0.5, 1),
    "block": "basic", "stem_widths": (16,), "stem_stride": 1, "stem_depths": (0,), "max_pool": False,
    "stage_widths": (16, 32, 64), "stage_strides": (1, 2, 2), "num_classes": 10,
}  # fmt: skip
ODD = {
    "resolutions": (21, 33), "width_mults": (0.5, 1.0), "width_per_stage": True, "depths": (0, 2),
    "base_depths": (2, 1), "stem_widths": (12, 16, 20), "stem_depths": (2, 1), "stage_widths": (16, 36),
    "stage_strides": (1, 3), "in_channels": 2, "num_classes": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "archs"),
    [({"resolutions": (32,)}, 0), (ODD, 4), (RESNET20 | {"resolutions": (9, 16)}, 4)],
    ids=["default", "odd", "small images"],
)
def test_conformance(arguments, archs):
    check_space(ResNetSpace(**arguments), archs=archs)


def only_arch(space: ResNetSpace) -> tuple[int, ...]:
    assert space.size == 1
    return (0,) * len(space.slots)


@pytest.mark.parametrize(
    ("arguments", "block", "layers", "params"),
    [(RESNET50, Bottleneck, [3, 4, 6, 3], 25_557_032), (RESNET18, BasicBlock, [2, 2, 2, 2], 11_689_512)],
    ids=["50", "18"],
)
def test_the_standard_networks_have_the_parameters_and_macs_of_torchvision(arguments, block, layers, params):
    space = ResNetSpace(**arguments)
    blocks = space.blocks(only_arch(space))
    with torch.device("meta"):
        theirs, ours = ResNet(block, layers), space.build(only_arch(space))
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert sum(block.params for block in blocks) == count_params(theirs) == params
    with FlopCounterMode(display=False) as counter:
        theirs(torch.empty(1, 3, 224, 224, device="meta"))
    assert sum(block.macs for block in blocks) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("arguments", "block"),
    [(RESNET50 | {"base_depths": (2, 1, 1, 1)}, Bottleneck), (RESNET18 | {"base_depths": (2, 1, 1, 1)}, BasicBlock)],
    ids=["bottleneck", "basic"],
)
def test_the_standard_networks_compute_what_those_of_torchvision_do_but_for_the_pooling(arguments, block):
    space = ResNetSpace(**arguments)
    torch.manual_seed(0)
    ours, theirs = space.build(only_arch(space)), ResNet(block, [2, 1, 1, 1])
    randomise(ours)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = ours.eval()(images)
        assert not torch.allclose(theirs.eval()(images), logits, rtol=1e-2)
        for stage in (theirs.layer2, theirs.layer3, theirs.layer4):
            conv = stage[0].downsample[0]
            conv.stride = (1, 1)
            stage[0].downsample[0] = nn.Sequential(nn.AvgPool2d(2), conv)
        torch.testing.assert_close(theirs(images), logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


def test_other_published_sizes():
    """ResNet-50D has three 3x3 convolutions for one of 7x7; ResNet-20 (0.27 M) here projects where channels double."""
    space = ResNetSpace(resolutions=(224,))
    arch = described(space, [3, 4, 6, 3], 0.25, **{"stem.depth": 1})
    convolutions = 9 * (3 * 32 + 32 * 32 + 32 * 64) + 2 * (32 + 32 + 64)
    wanted = 25_557_032 - 7 * 7 * 3 * 64 - 2 * 64 + convolutions
    assert sum(block.params for block in space.blocks(arch)) == wanted == 25_576_264  # as of timm's resnet50d
    small = ResNetSpace(**RESNET20)
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    blocks = small.blocks(described(small, [3, 3, 3], 1))
    assert sum(block.params for block in blocks) - projections == 269_722


def described(space, depths, expand, **others):
    choice = {"resolution": space.slots[0].options[-1], "width": 1.0, "stem.depth": 0}
    for stage, depth in enumerate(depths):
        choice[f"stage{stage}.depth"] = depth
    choice |= {slot.name: expand for slot in space.slots if slot.name.endswith(".expand")}
    return space.arch_of(choice | others)


def test_channels_are_rounded_as_once_for_all_does():
    """Middle channels of rounded output channels, to an integer first: 0.35 * 1336 = 467.6 makes 472, not 464."""
    space = ResNetSpace(resolutions=(224,))
    blocks = space.blocks(described(space, [2, 2, 4, 2], 0.35, width=0.65))
    found = [(block.out_channels, block.mid_channels) for block in blocks if hasattr(block, "mid_channels")]
    assert sorted(set(found)) == [(168, 56), (336, 120), (664, 232), (1328, 464)]
    wider = ResNetSpace(resolutions=(32,), stage_widths=(1336,), stage_strides=(1,), base_depths=(1,))
    assert wider.blocks(described(wider, [1], 0.35))[-2].mid_channels == 472


def test_size_and_slots():
    space = ResNetSpace()
    assert [slot.name for slot in space.slots[:6]] == [
        "resolution", "width", "stem.depth", "stage0.depth", "stage0.0.expand", "stage0.1.expand"
    ]  # fmt: skip
    assert space.size == 8 * 3 * 2 * 3**4 * 3 ** (4 + 4 + 6 + 4)
    assert ResNetSpace(width_per_stage=True).size == space.size * 3**5
    assert space.largest_input == (3, 256, 256)
    assert space.slots[3].options == (2, 3, 4)
    assert contextual(space, space.sample(8, np.random.default_rng(0))) == ()  # latency is additive


def test_depth_switches_blocks_off():
    space = ResNetSpace(resolutions=(32,))
    shallow, deep = described(space, [2, 2, 4, 2], 0.2), described(space, [3, 2, 4, 2], 0.2, **{"stem.depth": 1})
    names = [{position.name for position, _ in space.placed_blocks(arch)} for arch in (shallow, deep)]
    assert names[1] - names[0] == {"stage0_2", "stem0_residual0"}
    hidden = {"stage0.2.expand": 0.35}
    assert described(space, [2, 2, 4, 2], 0.2, **hidden) == shallow
    assert described(space, [3, 2, 4, 2], 0.2, **hidden, **{"stem.depth": 1}) != deep


# Channels 8 and 8 at the smaller width, 16 and 24 at the larger: equal for one, which alone would need no projection.
UNEQUAL = RESNET20 | {"width_mults": (0.4, 1.0), "stage_widths": (20, 32, 64)}


@pytest.mark.parametrize(
    ("arguments", "projects"),
    [
        (RESNET20, (False, True, True)),
        (RESNET20 | {"width_per_stage": True}, (True, True, True)),
        (UNEQUAL, (True, True, True)),
        (ODD, (True, True)),
        ({"resolutions": (32, 64), "width_mults": (0.65, 1.0)}, (True, True, True, True)),
    ],
)
def test_blocks_of_one_position_are_parts_of_its_largest(arguments, projects):
    space = ResNetSpace(**arguments)
    found = []
    for place, position in enumerate(space.positions):
        blocks = {block for _, block in space.position_blocks(place)} - {None}
        assert len({type(block) for block in blocks}) == 1
        with torch.device("meta"):
            shapes = [{n: p.shape for n, p in block.module().named_parameters()} for block in blocks]
        assert len({tuple(shape) for shape in shapes}) == 1, position
        largest = max(shapes, key=lambda shape: sum(map(np.prod, shape.values())))
        for shape in shapes:
            assert all((np.array(shape[name]) <= largest[name]).all() for name in shape)
            assert all(shape[name][2:] == largest[name][2:] for name in shape)
        found += [any("shortcut" in name for name in shapes[0])] if position.name.endswith("_0") else []
    assert tuple(found) == projects


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_average_pooling_has_the_size_of_a_convolution_and_counts_pixels_inside_only(stride):
    conv = nn.Conv2d(1, 1, 3, stride, 1)
    for size in range(1, 13):
        pool, image = average_pool(size, stride), torch.rand(1, 1, size, size)
        assert pool(image).shape == conv(image).shape
        torch.testing.assert_close(pool(torch.ones_like(image)), torch.ones_like(pool(image)))
        assert (pool.padding == 0) == (size % stride == 0)


BAD = [
    *(
        (name, value)
        for name in ("stem_kernel", "stem_stride", "in_channels", "num_classes")
        for value in (0, 2.5, "8", True, None, [8])
    ),
    *(
        (name, value)
        for name in ("resolutions", "base_depths", "stem_widths", "stage_widths", "stage_strides")
        for value in ([], 3, "3", [3, 5.0], [3, True], [3, 0], None)
    ),
    *((name, value) for name in ("depths", "stem_depths") for value in ([], 0, [-1], [1.0], [True], ["1"], [1, 1])),
    *((name, value) for name in ("width_mults", "expands") for value in ([], 1.0, [0], [17], [float("nan")], [1, 1.0])),
    *((name, value) for name in ("width_per_stage", "max_pool") for value in (1, 0, "yes", None)),
    *(("block", value) for value in ("mbconv", None, ["basic"], 1)),
    ("stem_kernel", 4),
    ("resolutions", [32, 32]),
    ("base_depths", [2, 2, 4]),
    ("stage_strides", [1, 2, 2, 2, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: str(value))
def test_bad_arguments_are_named(name, value):
    with pytest.raises(SpaceError, match=rf"^{name} needs .*, got "):
        make_space("resnet", {name: value})
