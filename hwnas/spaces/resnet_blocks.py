"""The blocks of residual networks (He et al., arXiv 1512.03385), with ResNet-D's shortcuts (arXiv 1812.01187).

Where a shortcut changes the size, the image is averaged and then projected, so no pixel is left out. Of an image whose
size is no multiple of the stride, the first windows of that averaging begin outside of the image, as those of the
convolution beside it do; only pixels inside count.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from hwnas.blocks import Block, conv_bn, conv_output_size


@dataclass(frozen=True)
class ResidualBlock(Block):
    """The ReLU of the sum of a path of convolutions and a shortcut, which is the input itself or, if `projection`,
    average pooling by the stride (where that is not 1), a 1x1 convolution and batch normalisation.

    `mid_channels` are those inside of the path. Without projection, shape and channels must be kept.
    """

    out_channels: int
    mid_channels: int
    stride: int
    projection: bool

    @abstractmethod
    def path(self) -> nn.Module:
        """What is added to the shortcut."""

    def shortcut(self) -> nn.Module:
        """What the path is added to."""
        if not self.projection:
            return nn.Identity()
        layers = OrderedDict[str, nn.Module]()
        if self.stride != 1:
            layers["pool"] = average_pool(self.size, self.stride)
        layers["project"] = conv_bn(self.in_channels, self.out_channels, 1, 1, 1, "")
        return nn.Sequential(layers)

    def module(self) -> nn.Module:
        return Residual(self.path(), self.shortcut())


@dataclass(frozen=True)
class BottleneckBlock(ResidualBlock):
    """Residual block with a path of a 1x1, a 3x3 (which has the stride) and a 1x1 convolution."""

    def path(self) -> nn.Module:
        mid = self.mid_channels
        return nn.Sequential(
            OrderedDict(
                reduce=conv_bn(self.in_channels, mid, 1, 1, 1, "relu"),
                spatial=conv_bn(mid, mid, 3, self.stride, 1, "relu"),
                expand=conv_bn(mid, self.out_channels, 1, 1, 1, ""),
            )
        )


@dataclass(frozen=True)
class BasicBlock(ResidualBlock):
    """Residual block with a path of two 3x3 convolutions, the first of which has the stride."""

    def path(self) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                first=conv_bn(self.in_channels, self.mid_channels, 3, self.stride, 1, "relu"),
                second=conv_bn(self.mid_channels, self.out_channels, 3, 1, 1, ""),
            )
        )


@dataclass(frozen=True)
class ResidualConvBlock(Block):
    """The input plus its 3x3 convolution with batch normalisation and ReLU; shape kept."""

    def module(self) -> nn.Module:
        return ResidualConv(self.in_channels)


@dataclass(frozen=True)
class MaxPoolBlock(Block):
    """Maximum pooling 3x3 that halves the size."""

    def module(self) -> nn.Module:
        return nn.Sequential(OrderedDict(pool=nn.MaxPool2d(3, stride=2, padding=1)))


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


class Residual(nn.Module):
    """The module of a ResidualBlock: (batch, in_channels, size, size) -> (batch, out_channels, size / stride, ...)."""

    def __init__(self, path: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.path, self.shortcut, self.activation = path, shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.path(x) + self.shortcut(x))
        return y


class ResidualConv(nn.Module):
    """The module of a ResidualConvBlock: shape kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.path = conv_bn(channels, channels, 3, 1, 1, "relu")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.path(x)
        return y + x


def average_pool(size: int, stride: int) -> nn.AvgPool2d:
    """Means of windows as large as the stride; the output has the size of a "same"-padded convolution's."""
    missing = conv_output_size(size, stride) * stride - size
    return nn.AvgPool2d(stride, padding=(missing + 1) // 2, count_include_pad=False)
