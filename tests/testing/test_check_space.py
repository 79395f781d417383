"""check_space passes a right toy space and says what is wrong with each of many broken ones."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.blocks import ConvBlock, HeadBlock
from hwnas.space import Position, SearchSpace, Slot
from hwnas.testing.spaces import check_space


class ToySpace(SearchSpace):
    """A stem, one or two layers of kernel 1 or 3, a head."""

    name = "toy"
    num_classes = 4

    def __init__(self, *, width=8, resolutions=(8, 12)):
        self.width, self.resolutions = width, list(resolutions)
        kernels = (1, 3)
        self.slots = (
            Slot("resolution", tuple(resolutions)),
            Slot("depth", (1, 2)),
            Slot("kernel0", kernels),
            Slot("kernel1", kernels),
        )
        self.positions = (
            Position("stem", (0,)),
            Position("body.0", (0, 2)),
            Position("body.1", (0, 1, 3)),
            Position("head", (0,)),
        )

    @property
    def config(self):
        return {"width": self.width, "resolutions": self.resolutions}

    def block_at(self, position, options):
        size, width = self.resolutions[options[0]], self.width
        if position == 0:
            return ConvBlock(size, 3, width, 3, 2, "relu6")
        if position == 3:
            return HeadBlock(size // 2, width, 16, self.num_classes, "silu")
        if position == 2 and options[1] == 0:
            return None
        return ConvBlock(size // 2, width, width, self.slots[position + 1].options[options[-1]], 1, "relu")

    def canonical(self, archs):
        archs = archs.copy()
        archs[archs[:, 1] == 0, 3] = 0
        return archs

    def input_shape(self, arch):
        return 3, self.resolutions[arch[0]], self.resolutions[arch[0]]

    def build(self, arch):
        modules = {position.name: block.module() for position, block in self.placed_blocks(arch)}
        body = OrderedDict((name[-1], module) for name, module in modules.items() if name.startswith("body"))
        return nn.Sequential(
            OrderedDict(stem=modules["stem"], body=nn.Sequential(body), head=list(modules.values())[-1], **self.extra())
        )

    def extra(self):
        return {}


def test_a_right_space_passes():
    check_space(ToySpace())
    check_space(ToySpace(width=16, resolutions=(6,)), archs=3, seed=5)


def test_the_random_state_of_the_caller_is_kept():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_space(ToySpace(), archs=1)
    assert torch.equal(torch.get_rng_state(), before)


class ForgetsConfig(ToySpace):
    @property
    def config(self):
        return {"width": 8}


class ConfigIsNotJson(ToySpace):
    @property
    def config(self):
        return {"resolutions": {8, 12}}


class ConfigOfOthers(ToySpace):
    @property
    def config(self):
        return {"widths": 8}


class ActiveSlotToZero(ToySpace):
    def canonical(self, archs):
        archs = super().canonical(archs)
        archs[archs[:, 1] == 1, 3] = 0
        return archs


class NotIdempotent(ToySpace):
    def canonical(self, archs):
        archs = archs.copy()
        archs[:, 3] = (archs[:, 3] + 1) % 2
        return archs


class RowsDependOnEachOther(ToySpace):
    def canonical(self, archs):
        archs = super().canonical(archs)
        if len(archs) > 1:
            archs[:, 2] = archs[:, 2].min()
        return archs


class ChangesItsArgument(ToySpace):
    def canonical(self, archs):
        archs[archs[:, 1] == 0, 3] = 0
        return archs


class OutOfTheSpace(ToySpace):
    def canonical(self, archs):
        return archs - 1


class GivesFloats(ToySpace):
    def canonical(self, archs):
        return super().canonical(archs) * 1.0


class SamplesRaw(ToySpace):
    def sample(self, n, rng):
        return rng.integers(0, self.cardinalities, size=(n, 4))


class SamplesUnseeded(ToySpace):
    def sample(self, n, rng):
        return super().sample(n, np.random.default_rng())


class WrongPositionName(ToySpace):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.positions = (*self.positions[:3], Position("tail", (0,)))


class NestedPositions(ToySpace):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.positions = (*self.positions, Position("head.pool", (0,)))


class UnknownSlot(ToySpace):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.positions = (*self.positions[:3], Position("head", (4,)))


class SlotsOfOneName(ToySpace):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.slots = (*self.slots[:3], Slot("kernel0", (1, 3)))


class ComputesElsewhere(ToySpace):
    def extra(self):
        return {"scale": nn.Linear(4, 4)}


class CheapWorkElsewhere(ToySpace):
    def extra(self):
        return {"last": nn.Hardswish()}


class RunsTwice(ToySpace):
    def build(self, arch):
        return Twice(super().build(arch))


class Twice(nn.Module):
    def __init__(self, network):
        super().__init__()
        for name, module in network.named_children():
            self.add_module(name, module)

    def forward(self, x):
        return self.head(self.body(self.body(self.stem(x))))


class SkipsABlock(ToySpace):
    def sources(self, arch):
        return [(-1,), (0,), *([(0,)] * (len(self.placed_blocks(arch)) - 2))]


class ForgetsASource(ToySpace):
    def sources(self, arch):
        return super().sources(arch)[:-1]


class WrongSize(ToySpace):
    def block_at(self, position, options):
        block = super().block_at(position, options)
        return ConvBlock(block.size + 1, 8, 8, 1, 1, "relu") if position == 1 and options[1] == 0 else block


class WrongActivation(ToySpace):
    def block_at(self, position, options):
        block = super().block_at(position, options)
        return ConvBlock(block.size, 8, 8, 3, 1, "silu") if position == 1 and options[1] == 1 else block

    def build(self, arch):
        network = super().build(arch)
        for layer in network.body:
            layer.activation = nn.ReLU()
        return network


class WrongParameters(ToySpace):
    def build(self, arch):
        network = super().build(arch)
        network.stem.bn = nn.BatchNorm2d(8, affine=False)
        return network


class IdleParameters(ToySpace):
    def build(self, arch):
        network = super().build(arch)
        network.register_parameter("idle", nn.Parameter(torch.zeros(3)))
        return network


class WrongClasses(ToySpace):
    num_classes = 5

    def block_at(self, position, options):
        block = super().block_at(position, options)
        return HeadBlock(block.size, 8, 16, 4, "silu") if position == 3 else block


@dataclass(frozen=True)
class KeylessBlock(ConvBlock):
    key = "conv"


class KeysCollide(ToySpace):
    def block_at(self, position, options):
        block = super().block_at(position, options)
        return KeylessBlock(block.size, 8, 8, block.kernel, 1, "relu") if position == 1 else block


@dataclass(frozen=True)
class ListBlock(ConvBlock):
    kernels: list[int]


class BlocksWithoutHash(ToySpace):
    def block_at(self, position, options):
        block = super().block_at(position, options)
        return ListBlock(block.size, 8, 8, 1, 1, "relu", [1, 3]) if position == 1 else block


class BlocksThatChange(ToySpace):
    calls = 0

    def block_at(self, position, options):
        block = super().block_at(position, options)
        self.calls += 1
        kernel = 3 if self.calls % 7 else 1
        return ConvBlock(block.size, 8, 8, kernel, 1, "relu") if position == 1 else block


class NotReproducible(ToySpace):
    def build(self, arch):
        network = super().build(arch)
        nn.init.constant_(network.head.classifier.bias, float(np.random.default_rng().random()))
        return network


class SharesWeights(ToySpace):
    shared = None

    def build(self, arch):
        if self.shared is None:
            self.shared = super().build((0, 0, 0, 0)).stem
        network = super().build(arch)
        network.stem = self.shared
        return network


class UnknownOperator(ToySpace):
    def extra(self):
        return {"gelu": nn.GELU()}


class NormalisesByBatch(ToySpace):
    """What it computes in evaluation is not what the graph says."""

    def build(self, arch):
        network = super().build(arch)
        network.stem.bn.register_forward_hook(lambda module, inputs, output: output * 1.01)
        return network


class TwoSlotsDecideTheSize(ToySpace):
    def input_shape(self, arch):
        return 3, self.resolutions[arch[0]] + 8 * min(arch[:2]), self.resolutions[arch[0]] + 8 * min(arch[:2])


BROKEN = [
    (ForgetsConfig, "has other slots: .* complete config"),
    (ConfigIsNotJson, "config must hold the JSON-serialisable arguments"),
    (ConfigOfOthers, "unexpected keyword argument 'widths'"),
    (ActiveSlotToZero, "another network: at position 'body.1' stands conv"),
    (NotIdempotent, "must be idempotent"),
    (RowsDependOnEachOther, "treat rows alike"),
    (ChangesItsArgument, "copy it first"),
    (OutOfTheSpace, "not in the space"),
    (GivesFloats, "integers of the same shape"),
    (SamplesRaw, "return canonical rows"),
    (SamplesUnseeded, "draw from rng only"),
    (WrongPositionName, "has no module 'tail'"),
    (NestedPositions, "lies inside of position"),
    (UnknownSlot, r"depends on slots \(4,\)"),
    (SlotsOfOneName, "share the name .'kernel0'"),
    (ComputesElsewhere, "put every layer in a position"),
    (CheapWorkElsewhere, "computes hardswish in 'last', outside of every position"),
    (RunsTwice, "position 'body.0' of .* computes .* once"),
    (SkipsABlock, r"reads \['body.0'\], sources says \['stem'\]; override sources"),
    (ForgetsASource, r"gives \d entries for \d blocks"),
    (WrongSize, "position 'body.0' of .* computes .* its block conv:size=5"),
    (WrongActivation, "its block conv:.*activation=silu computes"),
    (WrongParameters, "module 'stem' of .* has 216 parameters, its block .* has 232"),
    (IdleParameters, "put every layer in a position"),
    (WrongClasses, r"gives \(1, 4\) for a batch of 1 in evaluation"),
    (KeysCollide, "the key conv stands for both"),
    (BlocksWithoutHash, "cannot be hashed"),
    (BlocksThatChange, "differs between two calls"),
    (NotReproducible, "head.classifier.bias of .* differs between two builds"),
    (SharesWeights, "stem.conv.weight of .* is shared by two builds"),
    (UnknownOperator, "GELU"),
    (NormalisesByBatch, "in ONNX Runtime differs from its module"),
    (TwoSlotsDecideTheSize, "above largest_input"),
]


@pytest.mark.parametrize(("space", "message"), BROKEN, ids=[space.__name__ for space, _ in BROKEN])
def test_a_broken_space_is_caught(space, message):
    with pytest.raises(AssertionError, match=message):
        check_space(space(resolutions=(8, 16)), archs=2)


def test_dead_work_must_be_declared():
    check_space(ActiveSlotToZero(), archs=1, removes_dead_work=True)
