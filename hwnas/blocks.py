"""Blocks: the units that hardware is measured in. A block is its shape and its hyper-parameters, nothing else.

From these one definition follows everything: `key` (the row of a latency table), `module()` (what is trained and
exported), MACs and parameters (by tracing the module), and the graph that is profiled (`graphs/`, the same
trace). Two blocks with equal fields are the same work for the hardware, wherever they stand in a network.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor, nn

from hwnas.errors import SpaceError
from hwnas.trace import Shape, Trace, count_params, trace

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
}


@dataclass(frozen=True)
class Block(ABC):
    """A piece of a network that maps (batch, in_channels, size, size) to its output."""

    size: int
    in_channels: int

    @abstractmethod
    def module(self) -> nn.Module:
        """A freshly initialised module that computes this block."""

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        """Shapes of the inputs without the batch; blocks with several inputs override it."""
        return ((self.in_channels, self.size, self.size),)

    @property
    def key(self) -> str:
        """What identifies the block in a latency table: kind and fields, readable, e.g. 'conv:size=8,in_channels=3'."""
        values = ",".join(f"{field.name}={_plain(getattr(self, field.name))}" for field in fields(self))
        return f"{re.sub('block$', '', type(self).__name__.lower())}:{values}"

    @property
    def trace(self) -> Trace:
        """The operators of the block."""
        return _measures(self)[0]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.trace.macs

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return _measures(self)[1]


def _plain(value: object) -> object:
    return int(value) if isinstance(value, bool) else value


@lru_cache(maxsize=65536)
def _measures(block: Block) -> tuple[Trace, int]:
    with torch.device("meta"):
        module = block.module()
    return trace(module, block.input_shapes), count_params(module)


@dataclass(frozen=True)
class ConvBlock(Block):
    """Convolution, batch normalisation, activation ('' for none)."""

    out_channels: int
    kernel: int
    stride: int
    activation: str

    def module(self) -> nn.Module:
        return conv_bn(self.in_channels, self.out_channels, self.kernel, self.stride, 1, self.activation)


@dataclass(frozen=True)
class MBConvBlock(Block):
    """Mobile inverted bottleneck (MobileNetV3, arXiv 1905.02244): expand, depthwise, squeeze-excite, project.

    `mid_channels` are those of the depthwise convolution; no expansion when they equal `in_channels`. The input is
    added when the shape is kept. Squeeze-excite has a quarter of `mid_channels`, rounded to a multiple of 8.
    """

    out_channels: int
    kernel: int
    stride: int
    mid_channels: int
    activation: str
    se: bool

    def module(self) -> nn.Module:
        return MBConv(self)


@dataclass(frozen=True)
class HeadBlock(Block):
    """Global average pooling, a hidden layer (1x1 convolution without bias, activation) and the linear classifier."""

    hidden: int
    num_classes: int
    activation: str

    def module(self) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                hidden=nn.Conv2d(self.in_channels, self.hidden, 1, bias=False),
                activation=make_activation(self.activation),
                flatten=nn.Flatten(),
                classifier=nn.Linear(self.hidden, self.num_classes),
            )
        )


class MBConv(nn.Module):
    """The module of an MBConvBlock: (batch, in_channels, size, size) -> (batch, out_channels, size/stride, ...)."""

    def __init__(self, block: MBConvBlock) -> None:
        super().__init__()
        mid = block.mid_channels
        self.residual = block.stride == 1 and block.in_channels == block.out_channels
        layers = OrderedDict[str, nn.Module]()
        if mid != block.in_channels:
            layers["expand"] = conv_bn(block.in_channels, mid, 1, 1, 1, block.activation)
        layers["depthwise"] = conv_bn(mid, mid, block.kernel, block.stride, mid, block.activation)
        if block.se:
            layers["se"] = SqueezeExcite(mid)
        layers["project"] = conv_bn(mid, block.out_channels, 1, 1, 1, "")
        self.layers = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y + x if self.residual else y


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al., arXiv 1709.01507) with MobileNetV3's hard sigmoid; shape kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels / 4)
        self.gate = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                reduce=nn.Conv2d(channels, squeezed, 1),
                relu=nn.ReLU(),
                expand=nn.Conv2d(squeezed, channels, 1),
                sigmoid=nn.Hardsigmoid(),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(x)
        return gate * x


def conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int, groups: int, activation: str
) -> nn.Sequential:
    """Convolution with "same" padding (odd kernels), batch normalisation and, unless '', an activation."""
    padding = kernel // 2
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        bn=nn.BatchNorm2d(out_channels),
    )
    if activation:
        layers["activation"] = make_activation(activation)
    return nn.Sequential(layers)


def make_activation(name: str) -> nn.Module:
    """The activation module of that name. Raises SpaceError on an unknown name."""
    if name not in ACTIVATIONS:
        raise SpaceError(f"unknown activation {name!r}; known: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, at least `divisor`, at most 10% below `channels` (MobileNet's rounding)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def conv_output_size(size: int, stride: int) -> int:
    """Output size of a "same"-padded convolution with an odd kernel."""
    return -(-size // stride)
