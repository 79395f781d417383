"""Which part of the largest block's weights each block at a place in the network has.

A block with fewer channels has the leading ones: Once-for-All's nested weights (Cai et al., ICLR 2020, arXiv
1908.09791). A smaller kernel is the centre of the next larger one, sent through a learned matrix that all channels of
the layer share (there: "elastic kernel size"); it begins as the identity.

Nothing here knows a kind of block: parts follow from the shapes of equally named parameters. So any space whose blocks
at one position have the same names for what they share has a supernet; what is of another kind gets its own weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from hwnas.blocks import Block
from hwnas.errors import SpaceError


@dataclass(frozen=True)
class Part:
    """The part of one parameter: its shape, and for a filter the kernel sizes from the largest down to its own."""

    shape: tuple[int, ...]
    kernels: tuple[int, ...] = ()

    def of(self, whole: Tensor, matrices: Mapping[str, Tensor]) -> Tensor:
        """The part of the largest block's parameter: a view, unless a filter is transformed."""
        part = whole
        for axis, n in enumerate(self.shape[: 2 if self.kernels else None]):
            part = part.narrow(axis, 0, n) if part.shape[axis] != n else part
        for larger, smaller in pairwise(self.kernels):
            edge = (larger - smaller) // 2
            centre = part[..., edge : edge + smaller, edge : edge + smaller]
            part = (centre.flatten(2) @ matrices[matrix_name(larger, smaller)].T).view_as(centre)
        return part


def matrix_name(larger: int, smaller: int) -> str:
    """The name of the matrix between two sizes of a kernel."""
    return f"{larger}to{smaller}"


def kind_of(block: Block) -> tuple[object, ...]:
    """What blocks must agree in to share weights: their class, and the fields that are no numbers."""
    values = (getattr(block, field.name) for field in fields(block))
    return (type(block), *(value for value in values if isinstance(value, bool) or not isinstance(value, int)))


def largest_block(blocks: Iterable[Block]) -> Block:
    """The block of the given kind that has the largest value in every number."""
    first, *others = blocks
    largest = {
        field.name: max(getattr(block, field.name) for block in (first, *others))
        for field in fields(first)
        if isinstance(value := getattr(first, field.name), int) and not isinstance(value, bool)
    }
    return replace(first, **largest)


def meta_module(block: Block) -> nn.Module:
    """A module of the block that holds shapes and no values."""
    with torch.device("meta"):
        return block.module()


def kernel_sizes(modules: Sequence[nn.Module]) -> dict[str, tuple[int, ...]]:
    """By name of a filter that comes in several sizes: these sizes, the largest first.

    Raises SpaceError for filters that are not square, or whose sizes cannot have one centre.
    """
    sizes: dict[str, set[tuple[int, ...]]] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.ndim == 4:
                sizes.setdefault(name, set()).add(tuple(parameter.shape[2:]))
    several = {name: found for name, found in sizes.items() if len(found) > 1}
    for name, found in several.items():
        if any(height != width for height, width in found) or len({height % 2 for height, _ in found}) > 1:
            raise SpaceError(
                f"{name} comes as filters of {sorted(found)}; only square ones with one centre share weights"
            )
    return {name: tuple(sorted({height for height, _ in found}, reverse=True)) for name, found in several.items()}


def parts_of(module: nn.Module, whole: nn.Module, kernels: dict[str, tuple[int, ...]]) -> dict[str, Part]:
    """By name of a parameter of `module`: the part of `whole` that it is.

    Raises SpaceError where the larger block lacks it, or is not larger.
    """
    larger = dict(whole.named_parameters())
    parts: dict[str, Part] = {}
    for name, parameter in module.named_parameters():
        shape = tuple(parameter.shape)
        if name not in larger or any(own > most for own, most in zip(shape, larger[name].shape, strict=True)):
            found = tuple(larger[name].shape) if name in larger else "nothing of that name"
            raise SpaceError(f"a block has {name} of shape {shape}, the largest block at its place {found}")
        way: tuple[int, ...] = ()
        if name in kernels and shape[2] < kernels[name][0]:
            way = kernels[name][: kernels[name].index(shape[2]) + 1]
        parts[name] = Part(shape, way)
    return parts
