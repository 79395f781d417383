"""The blocks of NAS-Bench-201's networks (arXiv 2001.00326), as its authors' code computes them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwnas.blocks import Block
from hwnas.trace import Shape


@dataclass(frozen=True)
class ReLUConvBlock(Block):
    """ReLU, convolution, batch normalisation; shape kept."""

    kernel: int

    def module(self) -> nn.Module:
        return relu_conv_bn(self.in_channels, self.in_channels, self.kernel, 1)


@dataclass(frozen=True)
class AvgPoolBlock(Block):
    """Average pooling 3x3 over the pixels that exist; shape kept."""

    def module(self) -> nn.Module:
        return nn.Sequential(OrderedDict(pool=nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)))


@dataclass(frozen=True)
class SumBlock(Block):
    """The sum of two or three feature maps of one shape."""

    inputs: int

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        return ((self.in_channels, self.size, self.size),) * self.inputs

    def module(self) -> nn.Module:
        return SumOfTwo() if self.inputs == 2 else SumOfThree()


@dataclass(frozen=True)
class ZeroBlock(Block):
    """Zeros in the shape of the input: what a cell without any path gives.

    A depthwise 1x1 convolution by a constant: a plain operator to every tracer and exporter, nothing to train.
    """

    def module(self) -> nn.Module:
        conv = nn.Conv2d(self.in_channels, self.in_channels, 1, groups=self.in_channels, bias=False)
        del conv.weight
        conv.register_buffer("weight", torch.zeros(self.in_channels, 1, 1, 1))
        return nn.Sequential(OrderedDict(zero=conv))


@dataclass(frozen=True)
class ReductionBlock(Block):
    """Residual block that halves the size: two 3x3 convolutions beside average pooling and a 1x1 convolution."""

    out_channels: int

    def module(self) -> nn.Module:
        return Reduction(self.in_channels, self.out_channels)


@dataclass(frozen=True)
class NormHeadBlock(Block):
    """Batch normalisation, ReLU, global average pooling and the linear classifier."""

    num_classes: int

    def module(self) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                bn=nn.BatchNorm2d(self.in_channels),
                relu=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                classifier=nn.Linear(self.in_channels, self.num_classes),
            )
        )


class SumOfTwo(nn.Module):
    """Two tensors of one shape -> their sum."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class SumOfThree(nn.Module):
    """Three tensors of one shape -> their sum."""

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return a + b + c


class Reduction(nn.Module):
    """The module of a ReductionBlock: (batch, c, size, size) -> (batch, out_channels, size / 2, size / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            relu_conv_bn(in_channels, out_channels, 3, 2), relu_conv_bn(out_channels, out_channels, 3, 1)
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(in_channels, out_channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.shortcut(x)
        main: Tensor = self.main(x)
        return shortcut + main


def relu_conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    """ReLU, "same"-padded convolution without bias (odd kernels), batch normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(OrderedDict[str, nn.Module](relu=nn.ReLU(), conv=conv, bn=nn.BatchNorm2d(out_channels)))
