"""Channels sorted by importance, so that the leading ones, which smaller networks keep, are the ones that matter.

Once-for-All (arXiv 1908.09791, section 3.4, "elastic width"): the L1 norm of the weights that read a channel. Sorting
permutes channels in all weights that write or read them alike, so that networks compute the same as before; matrices
between kernels, which all channels share, keep their shapes. Hidden channels are a block's own. Those between blocks,
which widths are slices of, are permuted in all blocks that hand them on, as additions of a block's input do: one order
for a whole stage of residual blocks.

Sizes that were trained keep their channels: sorted are those of the smallest of them, and those that each has more than
the one before it. (So does the authors' released code.) All networks that were trained stay the same function.

Which axes count the same channels is found, not written down: those that change with a number of the block. So a block
of any kind is sorted, where a space's networks are chains of blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from hwnas.blocks import Block
from hwnas.space import SearchSpace
from hwnas.supernet.elastic import Shared, Supernet
from hwnas.supernet.sharing import kind_of, meta_module
from hwnas.supernet.stages import Stage, StageSampler

Axes = dict[str, tuple[int, ...]]  # by name of a parameter: its axes that count the channels
_Blocks = list[list[Block | None]]  # by position: those of the networks that were trained


def sort_channels(supernet: Supernet, trained: Stage) -> None:
    """Sort the channels of every block, the most important first, in place; networks of `trained` stay as they are."""
    blocks = _blocks_of(supernet.space, trained)
    for channels in [*_hidden(supernet, blocks), *_between(supernet, blocks)]:
        channels.sort()


@dataclass
class _Channels:
    """Channels that are permuted together: the axes that count them, who reads them, and the sizes that were trained.

    Keys of `axes` are parameters by identity.
    """

    count: int
    axes: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    readers: list[Tensor] = field(default_factory=list)
    sizes: set[int] = field(default_factory=set)

    def add(self, shared: Shared, axes: Axes) -> None:
        for name, own in axes.items():
            parameter = shared.weights.get_parameter(name)
            self.axes |= {(id(parameter), axis): parameter for axis in own}

    @torch.no_grad()
    def sort(self) -> None:
        importance = torch.stack([_importance(reader) for reader in self.readers]).sum(0)
        ends = sorted({*self.sizes, self.count})
        order = torch.cat(
            [
                begin + importance[begin:end].argsort(descending=True, stable=True)
                for begin, end in itertools.pairwise([0, *ends])
            ]
        )
        for (_, axis), parameter in self.axes.items():
            parameter.copy_(parameter.index_select(axis, order))


def hidden_channels(block: Block) -> dict[str, Axes]:
    """By the field of a block that counts channels inside of it: the axes of its parameters that do so, too."""
    found = {}
    for each in fields(block):
        if type(getattr(block, each.name)) is int and each.name not in ("size", "in_channels", "out_channels"):
            axes = _axes(block, each.name)
            if _readers(axes or {}):  # something inside of the block reads them
                found[each.name] = axes or {}
    return found


def _hidden(supernet: Supernet, trained: _Blocks) -> Iterator[_Channels]:
    for number, holders in enumerate(supernet.holders()):
        for shared in holders:
            for name, axes in hidden_channels(shared.block).items():
                sizes = {
                    getattr(block, name)
                    for block in trained[number]
                    if block and kind_of(block) == kind_of(shared.block)
                }
                channels = _Channels(getattr(shared.block, name), sizes=sizes)
                channels.add(shared, axes)
                # of several the projection out of the block
                channels.readers = [shared.weights.get_parameter(_readers(axes)[-1])]
                yield channels


def _between(supernet: Supernet, trained: _Blocks) -> Iterator[_Channels]:
    """Channels that blocks hand on, where architectures have different numbers of them."""
    if not supernet.is_chain:
        return
    group = list(range(len(trained)))  # by position: that of the channels which it reads
    for number, blocks in enumerate(trained[:-1]):
        if any(block is None or _handed_on(block) for block in blocks):
            group[number + 1] = group[number]
    for one in sorted(set(group) - {group[0]}):  # that of the image
        yield from _group(supernet, [number for number, of in enumerate(group) if of == one], trained)


def _group(supernet: Supernet, reading: list[int], trained: _Blocks) -> Iterator[_Channels]:
    """The channels that these positions read, and the ones before them write; nothing if they cannot be sorted."""
    holders = supernet.holders()
    counts = {shared.block.in_channels for number in reading for shared in holders[number]}
    everything = [block for number in reading for _, block in supernet.space.position_blocks(number) if block]
    if len(counts) != 1 or len({block.in_channels for block in everything}) == 1:
        return
    channels = _Channels(counts.pop())
    channels.sizes = {block.in_channels for number in reading for block in trained[number] if block}
    for number in reading:
        for shared in holders[number]:
            read = _axes(shared.block, "in_channels") or _axes(shared.block, *_as_many_as_read(shared.block))
            if read is None or shared.constants():
                return
            channels.add(shared, read)
            channels.readers += [shared.weights.get_parameter(name) for name in _readers(read)]
        for shared in holders[number - 1]:
            if hasattr(shared.block, "out_channels"):
                written = _axes(shared.block, "out_channels")
                if written is None or shared.block.out_channels != channels.count:
                    return
                channels.add(shared, written)
    if channels.readers:
        yield channels


def _handed_on(block: Block) -> bool:
    """Whether the channels that a block writes may be those it reads: it may add its input."""
    return getattr(block, "out_channels", block.in_channels) == block.in_channels


def _as_many_as_read(block: Block) -> list[str]:
    """Fields that count as many channels as the block reads: without an expansion, those inside are the same ones."""
    names = [each.name for each in fields(block) if each.name.endswith("_channels")]
    return [name for name in names if getattr(block, name) == block.in_channels]


def _blocks_of(space: SearchSpace, stage: Stage) -> _Blocks:
    """All that networks of a stage have at each position."""
    options = StageSampler(space, stage).options
    return [
        [
            space.block_at(number, chosen)
            for chosen in itertools.product(*(options[slot].tolist() for slot in position.slots))
        ]
        for number, position in enumerate(space.positions)
    ]


def _axes(block: Block, *names: str) -> Axes | None:
    """The axes that count as many as fields `names` say; None where a block with fewer has another structure."""
    channels = getattr(block, names[0])
    if channels < 2:
        return None
    try:
        # fewer by a half, so that what is rounded to a multiple of 8 changes, too
        fewer = _shapes(replace(block, **dict.fromkeys(names, channels // 2)))
    except Exception:  # whatever a block raises that cannot have half of it, such as a kernel of even size
        return None
    shapes = _shapes(block)
    if set(fewer) != set(shapes):
        return None
    found = {
        name: tuple(axis for axis, n in enumerate(shape) if n == channels and fewer[name][axis] == channels // 2)
        for name, shape in shapes.items()
    }
    return {name: own for name, own in found.items() if own}


def _readers(axes: Axes) -> list[str]:
    return [name for name, own in axes.items() if 1 in own]


def _shapes(block: Block) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in meta_module(block).named_parameters()}


def _importance(reader: Tensor) -> Tensor:
    """(out, channels, ...) -> (channels,) L1 norms."""
    return reader.abs().sum(dim=[axis for axis in range(reader.ndim) if axis != 1])
