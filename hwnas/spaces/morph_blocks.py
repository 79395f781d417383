"""The blocks of `morph`: layers of a convolution with a skip around it, pooling, and a head without a hidden layer.

What enters a layer is never negative (it comes from a ReLU), and neither is what leaves it, whatever the weights: so a
ReLU in front of a layer, or a whole layer of identity, can be added to a network without changing what it computes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from hwnas.blocks import Block, conv_bn
from hwnas.trace import scale

fx.wrap("scale")

NONE, CONVEX, CONCAT = SKIPS = ("none", "convex", "concat")


@dataclass(frozen=True)
class MorphBlock(Block):
    """Convolution, batch normalisation, ReLU, and a skip around them; `out_channels` leave the block, skip included.

    A `separable` convolution is a depthwise one and a 1x1 one, with nothing between. `skip`: "none"; "convex", the
    learned combination `ConvexSkip` (in_channels = out_channels); "concat", the input behind the output of the
    convolution, which then has out_channels - in_channels filters.
    """

    out_channels: int
    kernel: int
    separable: bool
    skip: str

    @property
    def filters(self) -> int:
        """Output channels of the convolution."""
        return self.out_channels - self.in_channels * (self.skip == CONCAT)

    def module(self) -> nn.Module:
        layer = (
            separable_bn(self.in_channels, self.filters, self.kernel)
            if self.separable
            else conv_bn(self.in_channels, self.filters, self.kernel, 1, 1, "relu")
        )
        return with_skip(layer, self.skip)


@dataclass(frozen=True)
class MaxPoolBlock(Block):
    """Max pooling that halves the size (an odd last row and column are left out)."""

    def module(self) -> nn.Module:
        return nn.Sequential(OrderedDict(pool=nn.MaxPool2d(2)))


@dataclass(frozen=True)
class PoolHeadBlock(Block):
    """Global average pooling and the linear classifier."""

    num_classes: int

    def module(self) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                classifier=nn.Linear(self.in_channels, self.num_classes),
            )
        )


class ConvexSkip(nn.Module):
    """y = ReLU((1 - mix) layer(x) + mix x) with a learned number `mix`, lambda in LEMONADE; the shape of x is kept.

    The layer ends with a ReLU, as everywhere here. The outer ReLU changes nothing while mix is in [0, 1] and x is not
    negative; it keeps the output from being negative if training takes mix beyond. With mix = 0 it is the layer alone.
    """

    def __init__(self, layer: nn.Module, mix: float = 0.5) -> None:
        super().__init__()
        self.layer = layer
        self.combination = Combination(mix)
        self.activation = nn.ReLU()

    @property
    def mix(self) -> nn.Parameter:
        """The learned number."""
        return self.combination.mix

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.combination(self.layer(x), x))
        return y


class Combination(nn.Module):
    """(1 - mix) y + mix x of two tensors of one shape."""

    def __init__(self, mix: float) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor(mix))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return scale(y, 1 - self.mix) + scale(x, self.mix)


class ConcatSkip(nn.Module):
    """(batch, c, ...) -> (batch, filters + c, ...): what the layer makes of x, then x."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(x), x], 1)


def with_skip(layer: nn.Module, skip: str) -> nn.Module:
    """The layer with one of SKIPS around it."""
    if skip == CONVEX:
        return ConvexSkip(layer)
    return ConcatSkip(layer) if skip == CONCAT else layer


def separable_bn(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Depthwise convolution with "same" padding (odd kernels), 1x1 convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            depthwise=nn.Conv2d(in_channels, in_channels, kernel, 1, kernel // 2, groups=in_channels, bias=False),
            conv=nn.Conv2d(in_channels, out_channels, 1, bias=False),
            bn=nn.BatchNorm2d(out_channels),
            activation=nn.ReLU(),
        )
    )
