"""A layer taken out of a chain (LEMONADE, section 3.2: an approximate morphism).

The paper lets whoever read the layer be learnt anew from the parent. Here the reader begins as what it was after the
layer made linear: batch normalisation folded into the convolution, and ReLU as the line that is closest to it for
normal activations. The longer kernel that results is made short again (`views.resized`).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from hwnas.errors import SpaceError
from hwnas.train.morphisms.chain import carried_on, convolution, index_of, reader_groups
from hwnas.train.morphisms.views import View, rectified


def remove(chain: nn.Sequential, name: str) -> nn.Sequential:
    """A chain of single layers without the convolution `name` and the batch normalisation and ReLU behind it.

    Raises SpaceError unless the convolution has stride 1, keeps the size, and is followed by those two and a reader.
    """
    conv, place = convolution(chain, name), index_of(chain, name)
    reader_groups(chain, place)
    layers = list(chain.named_children())
    following = [layer for _, layer in layers[place + 1 : place + 3]]
    norm = following[0] if following else None
    same = conv.stride == (1, 1) and conv.padding == tuple(size // 2 for size in conv.kernel_size)
    if not same or conv.dilation != (1, 1) or not isinstance(norm, nn.BatchNorm2d) or not _ends(following):
        raise SpaceError(f"layer {name!r} can go if it keeps the size and a batch normalisation and ReLU follow")
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    return carried_on(chain, place + 3, linearised(dense(conv), norm, bias), OrderedDict(layers[:place]))


def _ends(following: list[nn.Module]) -> bool:
    return len(following) == 2 and isinstance(following[1], nn.ReLU)


def dense(conv: nn.Conv2d) -> Tensor:
    """(out, in, k, k) float64: the weight without groups."""
    weight = conv.weight.detach().double()
    whole = weight.new_zeros(conv.out_channels, conv.in_channels, *conv.kernel_size)
    filters, width = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    for group in range(conv.groups):
        rows = slice(group * filters, (group + 1) * filters)
        whole[rows, group * width : (group + 1) * width] = weight[rows]
    return whole


def linearised(weight: Tensor, norm: nn.BatchNorm2d, bias: Tensor) -> View:
    """Convolution with `bias` (out,), batch normalisation and ReLU as a view of their output on their input.

    (out, in, k, k) -> kernel of that shape. The mean of the output is kept for an input as in training: the running
    mean is what the convolution then gives.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gamma, beta = norm.weight.detach().double(), norm.bias.detach().double()
    out_mean, _, slope = rectified(beta, gamma)
    scale = slope * gamma / torch.sqrt(norm.running_var.double() + norm.eps)
    channels, entering = weight.shape[:2]
    source = torch.arange(entering) if channels == entering else torch.full((entering,), -1)
    offset = out_mean - scale * (norm.running_mean.double() - bias.double())
    return View(weight * scale[:, None, None, None], source, offset, False)
