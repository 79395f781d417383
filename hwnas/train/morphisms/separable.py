"""A convolution as a depthwise one and a 1x1 one, and back (LEMONADE, appendix A.1.2; MobileNets, arXiv 1704.04861).

The paper leaves the new layers to distillation. Here they begin with the best weights there are: with nothing between
the two convolutions, input channel c meets filter o through p[o, c] * d[c], and the closest such kernels in the least
squares sense are the first singular vectors of each input channel's (filters, taps) matrix.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from hwnas.errors import SpaceError
from hwnas.train.morphisms.chain import convolution, index_of


@torch.no_grad()
def make_separable(chain: nn.Sequential, name: str) -> nn.Sequential:
    """A chain in which the convolution `name` is `name`_depthwise and `name`: an approximate morphism.

    Layers are shared with the given chain. Raises SpaceError for a convolution with groups or a 1x1 kernel.
    """
    conv, place = convolution(chain, name), index_of(chain, name)
    if conv.groups > 1 or conv.kernel_size == (1, 1):
        raise SpaceError(f"layer {name!r} must be a convolution without groups, larger than 1x1, got {conv}")
    depthwise = nn.Conv2d(
        conv.in_channels, conv.in_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
        conv.in_channels, bias=False,
    )  # fmt: skip
    pointwise = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)
    taps, mix = to_separable(conv.weight.double())
    depthwise.weight.copy_(taps)
    pointwise.weight.copy_(mix)
    if pointwise.bias is not None and conv.bias is not None:
        pointwise.bias.copy_(conv.bias)
    layers = list(chain.named_children())
    layers[place : place + 1] = [(f"{name}_depthwise", depthwise), (name, pointwise)]
    return nn.Sequential(OrderedDict(layers))


def to_separable(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in, k, k) -> depthwise (in, 1, k, k) and pointwise (out, in, 1, 1), each input channel's closest.

    A channel that no filter reads gets a depthwise kernel of the middle tap and zeros behind it.
    """
    out_channels, in_channels, size, _ = weight.shape
    u, s, v = torch.linalg.svd(weight.permute(1, 0, 2, 3).reshape(in_channels, out_channels, -1), full_matrices=False)
    root = s[:, :1].sqrt()
    depthwise, pointwise = v[:, 0] * root, u[:, :, 0] * root
    unread = s[:, 0] <= 0
    depthwise[unread] = 0
    depthwise[unread, depthwise.shape[1] // 2] = 1
    # the sign is free: let the kernel's sum be positive, so that equal weights always give equal layers
    sign = torch.where(depthwise.sum(1, keepdim=True) < 0, -1.0, 1.0).to(weight)
    depthwise, pointwise = depthwise * sign, pointwise * sign
    return depthwise.reshape(in_channels, 1, size, size), pointwise.T.reshape(out_channels, in_channels, 1, 1)


def to_plain(depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """(in, 1, k, k) and (out, in, 1, 1) -> the one convolution (out, in, k, k) that computes the same."""
    return pointwise * depthwise.transpose(0, 1)
