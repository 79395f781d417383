"""A new convolution, batch normalisation and ReLU that compute the identity on what is not negative.

LEMONADE's first operator (section 3.1, network morphism type I, "inserting a Conv-BN-ReLU block"). As there, it uses
that ReLU(ReLU(x)) = ReLU(x): the new layer must stand behind a ReLU, with at most pooling or concatenation between.
The convolution is a Dirac kernel. Batch normalisation undoes itself with any statistics; with those that the input
really has, training goes on from the identity too, since there the batch's own statistics are used.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from hwnas.blocks import conv_bn
from hwnas.errors import SpaceError
from hwnas.spaces.morph_blocks import separable_bn
from hwnas.train.morphisms.chain import index_of
from hwnas.train.morphisms.views import rectified


def insert(chain: nn.Sequential, after: str, name: str, kernel: int = 3, *, groups: int = 1) -> nn.Sequential:
    """A chain that computes the same, with the layers `name`_conv, `name`_bn and `name`_activation behind a ReLU.

    `after` is that ReLU; a batch normalisation before it tells the new one what to expect. Layers are shared with the
    given chain. Raises SpaceError unless `after` is a ReLU whose channels the layers before it tell.
    """
    place, layers = index_of(chain, after), list(chain.named_children())
    behind = [layer for _, layer in layers[:place] if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))]
    if not isinstance(layers[place][1], nn.ReLU) or not behind:
        raise SpaceError(f"an identity layer stands behind a convolution and its ReLU; {after!r} is {layers[place][1]}")
    before = behind[-1]
    if isinstance(before, nn.BatchNorm2d) and before.affine:
        mean, variance, _ = rectified(before.bias.detach().double(), before.weight.detach().double())
        new = identity_layer(before.num_features, kernel, groups=groups, mean=mean, variance=variance)
    else:
        channels = before.num_features if isinstance(before, nn.BatchNorm2d) else before.out_channels
        new = identity_layer(channels, kernel, groups=groups)
    inserted = [(f"{name}_{part}", layer) for part, layer in new.named_children()]
    return nn.Sequential(OrderedDict([*layers[: place + 1], *inserted, *layers[place + 1 :]]))


def identity_layer(
    channels: int,
    kernel: int = 3,
    *,
    groups: int = 1,
    separable: bool = False,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
) -> nn.Sequential:
    """Convolution (of `groups`, or `separable`), batch normalisation and ReLU that keep x >= 0 of `channels` as it is.

    `mean` and `variance` (channels,) of the input, if known. Raises SpaceError unless groups divide the channels.
    """
    if channels % groups:
        raise SpaceError(f"groups must divide the {channels} channels, got {groups}")
    if separable:
        layer = separable_bn(channels, channels, kernel)
    else:
        layer = conv_bn(channels, channels, kernel, 1, groups, "relu")
    for part in layer:
        if isinstance(part, nn.Conv2d):
            set_dirac(part)
        elif isinstance(part, nn.BatchNorm2d):
            zeros = torch.zeros(channels)
            set_neutral(part, zeros if mean is None else mean, zeros + 1 if variance is None else variance)
    return layer


@torch.no_grad()
def set_dirac(conv: nn.Conv2d) -> None:
    """Let output channel c be input channel c: 1 in the middle of its kernel, 0 elsewhere, no bias."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    per_group = conv.in_channels // conv.groups
    for channel in range(conv.out_channels):
        conv.weight[channel, channel % per_group, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1


@torch.no_grad()
def set_neutral(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Statistics (channels,) for a batch normalisation, and the affine parameters that undo it in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(torch.sqrt(norm.running_var.double() + norm.eps))
    norm.bias.copy_(norm.running_mean)
