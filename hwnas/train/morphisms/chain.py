"""A view carried along a chain of layers, to the one that reads the changed tensor and is changed for it.

A chain is an nn.Sequential of single layers. Batch normalisation and depthwise convolutions follow their channels;
activations, pooling and flattening hand the view on; a convolution (of any groups) or a linear layer reads it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hwnas.errors import SpaceError
from hwnas.train.morphisms.views import View, composed, rectified, resized

_CHANNELWISE = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Sigmoid, nn.Hardsigmoid, nn.Identity, nn.Dropout)
_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Carried:
    """A view on its way; `mean` and `std` (parent,) of the parent's tensor as batch normalisation tells them."""

    view: View
    mean: Tensor
    std: Tensor

    def refreshed(self) -> Carried:
        """With the present means for channels that are gone."""
        gone = ~self.view.kernel.any(1).flatten(1).any(1)
        return replace(self, view=replace(self.view, offset=torch.where(gone, self.mean, self.view.offset)))


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether every channel is convolved alone, into one."""
    return conv.groups == conv.in_channels == conv.out_channels > 1


def index_of(chain: nn.Sequential, name: str) -> int:
    """The place of the layer of that name. Raises SpaceError, with the names there are, if there is none."""
    names = [key for key, _ in chain.named_children()]
    if name not in names:
        raise SpaceError(f"the chain has no layer {name!r}; its layers: {', '.join(names)}")
    return names.index(name)


def convolution(chain: nn.Sequential, name: str) -> nn.Conv2d:
    """The convolution of that name. Raises SpaceError for another layer, or a depthwise convolution."""
    layer = chain[index_of(chain, name)]
    if not isinstance(layer, nn.Conv2d) or is_depthwise(layer):
        what = "a depthwise convolution: change the one before it" if isinstance(layer, nn.Conv2d) else repr(layer)
        raise SpaceError(f"layer {name!r} must be a convolution that mixes channels, it is {what}")
    return layer


def reader_groups(chain: nn.Sequential, after: int) -> int:
    """The groups of the layer that reads what place `after` computes; 1 for a linear layer. Raises SpaceError if none
    does: what a chain gives out cannot change."""
    for layer in list(chain)[after + 1 :]:
        if isinstance(layer, nn.Linear):
            return 1
        if isinstance(layer, nn.Conv2d) and not is_depthwise(layer):
            return layer.groups
    raise SpaceError("no layer of the chain reads what this one computes; a chain must end with one that does")


def carried_on(chain: nn.Sequential, first: int, view: View, head: OrderedDict[str, nn.Module]) -> nn.Sequential:
    """The child: the layers of `head`, then copies of the chain's from place `first` on, changed to read `view`."""
    layers, state = OrderedDict(head), _start(view)
    rest = list(chain.named_children())[first:]
    reading = True
    for place, (name, layer) in enumerate(rest):
        new = copy.deepcopy(layer)
        if reading and isinstance(layer, (nn.Linear, nn.Conv2d)) and not _follows(layer):
            following = rest[place + 1][1] if place + 1 < len(rest) else None
            new, shift = read(layer, state.view)
            reading = False
            if isinstance(following, nn.BatchNorm2d) and bool(shift.any()) and isinstance(new, nn.Conv2d):
                layers[name] = new
                layers[rest[place + 1][0]] = shifted_norm(following, shift)
                continue
            _add_bias(new, shift)
        elif reading:
            new, state = _through(layer, state)
        if name not in layers:
            layers[name] = new
    return nn.Sequential(layers)


def _start(view: View) -> Carried:
    zeros = torch.zeros(len(view.kernel), dtype=torch.float64)
    return Carried(view, zeros, zeros + 1)


def _follows(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and is_depthwise(layer)


def _through(layer: nn.Module, state: Carried) -> tuple[nn.Module, Carried]:
    """A layer that keeps channels apart, for the child, and the state behind it."""
    view = state.view
    if isinstance(layer, nn.BatchNorm2d):
        new = selected_norm(layer, view.source)
        weight = layer.weight if layer.affine else torch.ones(layer.num_features)
        bias = layer.bias if layer.affine else torch.zeros(layer.num_features)
        state = replace(state, mean=bias.detach().double(), std=weight.detach().double().abs())
        return new, state.refreshed()
    if isinstance(layer, nn.Conv2d):
        if not view.selects:
            raise SpaceError(f"{layer} keeps channels apart and cannot read the layers before a removed one; keep that")
        return _selected_depthwise(layer, view.source), state
    if isinstance(layer, nn.ReLU):
        mean, variance, _ = rectified(state.mean, state.std)
        return copy.deepcopy(layer), replace(state, mean=mean, std=variance.sqrt()).refreshed()
    if isinstance(layer, _POOLING):
        return copy.deepcopy(layer), replace(state, view=view.pooled())
    if isinstance(layer, (*_CHANNELWISE, nn.Flatten)):
        return copy.deepcopy(layer), state
    raise SpaceError(f"channels cannot be followed through {layer}; put the layer that reads them before it")


@torch.no_grad()
def read(layer: nn.Module, view: View) -> tuple[nn.Module, Tensor]:
    """A convolution or linear layer that reads the child's tensor, and (out,) what the view's offset adds to it."""
    channels = view.kernel.shape[1]
    if isinstance(layer, nn.Linear):
        view = view.pooled()
        pixels = layer.in_features // len(view.kernel)  # of a flattened image, channels first
        weight = layer.weight.double().reshape(layer.out_features, -1, pixels)
        new = nn.Linear(channels * pixels, layer.out_features, layer.bias is not None)
        new.weight.copy_(torch.einsum("ocp,ci->oip", weight, view.kernel[:, :, 0, 0]).reshape(layer.out_features, -1))
        if layer.bias is not None:
            new.bias.copy_(layer.bias)
        return new, torch.einsum("ocp,c->o", weight, view.offset)
    assert isinstance(layer, nn.Conv2d)
    parents, children = len(view.kernel) // layer.groups, channels // layer.groups
    filters = layer.out_channels // layer.groups
    weights, shifts = [], []
    for group in range(layer.groups):
        rows = slice(group * parents, (group + 1) * parents)
        weight = layer.weight[group * filters : (group + 1) * filters].double()
        weights.append(composed(weight, view.kernel[rows, group * children : (group + 1) * children]))
        shifts.append(weight.sum((2, 3)) @ view.offset[rows])
    reading = conv_like(layer, channels, layer.out_channels, layer.groups)
    reading.weight.copy_(resized(torch.cat(weights), layer.kernel_size[0]))
    if layer.bias is not None and reading.bias is not None:
        reading.bias.copy_(layer.bias)
    return reading, torch.cat(shifts)


def conv_like(conv: nn.Conv2d, in_channels: int, out_channels: int, groups: int) -> nn.Conv2d:
    """A fresh convolution with other channels and groups, else like the given one."""
    return nn.Conv2d(
        in_channels, out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, groups,  # type: ignore[arg-type]
        conv.bias is not None, conv.padding_mode,
    )  # fmt: skip


@torch.no_grad()
def selected_norm(norm: nn.BatchNorm2d, source: Tensor) -> nn.BatchNorm2d:
    """A batch normalisation of the channels `source`, a fresh one's values where that is -1."""
    new = nn.BatchNorm2d(len(source), norm.eps, norm.momentum, norm.affine)
    known = source >= 0
    for name, value in new.state_dict().items():
        old = norm.state_dict()[name]
        if value.ndim:
            value[known] = old[source[known]].to(value)
        else:
            value.copy_(old)
    return new


@torch.no_grad()
def shifted_norm(norm: nn.BatchNorm2d, shift: Tensor) -> nn.BatchNorm2d:
    """The same where its input lost `shift` (channels,)."""
    new = copy.deepcopy(norm)
    assert new.running_mean is not None
    new.running_mean.copy_(new.running_mean.double() - shift)
    return new


@torch.no_grad()
def _selected_depthwise(conv: nn.Conv2d, source: Tensor) -> nn.Conv2d:
    new = conv_like(conv, len(source), len(source), len(source))
    known = source >= 0
    new.weight[known] = conv.weight[source[known]]
    if new.bias is not None and conv.bias is not None:
        new.bias[known] = conv.bias[source[known]]
    return new


@torch.no_grad()
def _add_bias(layer: nn.Module, shift: Tensor) -> None:
    """What the offset adds, where no batch normalisation takes it up: only layers with a bias can."""
    if bool(shift.any()) and isinstance(layer.bias, Tensor):
        layer.bias.copy_(layer.bias.double() + shift)


def new_filters(conv: nn.Conv2d, source: Tensor, groups: int) -> nn.Conv2d:
    """The convolution with filters `source`, a fresh filter where that is -1."""
    new = conv_like(conv, conv.in_channels, len(source), groups)
    known = source >= 0
    with torch.no_grad():
        new.weight[known] = conv.weight[source[known]]
        if new.bias is not None and conv.bias is not None:
            new.bias[known] = conv.bias[source[known]]
    return new


def in_segments(channels: int, segments: int, pick: list[Tensor]) -> Tensor:
    """Joins what was picked within each of `segments` equal runs of channels, as numbers of all channels."""
    width = channels // segments
    return torch.cat([torch.where(one >= 0, one + number * width, one) for number, one in enumerate(pick)])
