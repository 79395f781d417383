"""Channels sorted by importance, so that the leading ones, which small expansions keep, are the ones that matter.

Once-for-All (arXiv 1908.09791, section 3.4, "elastic width"): the L1 norm of the weights that read a channel. Sorting
permutes the hidden channels of a block in all its weights alike, so that the largest block computes the same as before;
smaller blocks, and the matrices between kernels, which all channels share, keep their shapes.

Which axes count the same channels is found, not written down: those that change with a number of the block that says
nothing of its input and output. So a block of any kind is sorted.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from hwnas.blocks import Block
from hwnas.supernet.elastic import Shared, Supernet
from hwnas.supernet.sharing import meta_module

Axes = dict[str, tuple[int, ...]]  # by name of a parameter: its axes that count the channels


def sort_channels(supernet: Supernet) -> None:
    """Sort the hidden channels of every block that has such, the most important first, in place."""
    for shared in supernet.modules():
        if isinstance(shared, Shared):
            for channels, axes in hidden_channels(shared.block):
                _sort(shared.weights, channels, axes)


def hidden_channels(block: Block) -> list[tuple[int, Axes]]:
    """Every count of channels inside a block, with the axes of its parameters that count them."""
    shapes = _shapes(block)
    found = []
    for field in fields(block):
        channels = getattr(block, field.name)
        if type(channels) is not int or channels < 2 or field.name in ("size", "in_channels", "out_channels"):
            continue
        try:
            # fewer by a half, so that what is rounded to a multiple of 8 changes, too
            fewer = _shapes(replace(block, **{field.name: channels // 2}))
        except Exception:  # whatever a block raises that cannot have half of it, such as a kernel of even size
            continue
        if set(fewer) != set(shapes):
            continue  # another structure, not fewer channels
        axes: Axes = {}
        for name, shape in shapes.items():
            own = tuple(axis for axis, n in enumerate(shape) if n == channels and fewer[name][axis] == channels // 2)
            if own:
                axes[name] = own
        if any(1 in own for own in axes.values()):  # something inside of the block reads them
            found.append((channels, axes))
    return found


def _shapes(block: Block) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in meta_module(block).named_parameters()}


@torch.no_grad()
def _sort(weights: nn.Module, channels: int, axes: Axes) -> None:
    parameters = dict(weights.named_parameters())
    reader = [parameters[name] for name, own in axes.items() if 1 in own][-1]  # the projection out of the block
    order = _importance(reader).argsort(descending=True, stable=True)
    for name, own in axes.items():
        for axis in own:
            parameters[name].copy_(parameters[name].index_select(axis, order))


def _importance(reader: Tensor) -> Tensor:
    """(out, channels, ...) -> (channels,) L1 norms."""
    return reader.abs().sum(dim=[axis for axis in range(reader.ndim) if axis != 1])
