"""The largest and the smallest architecture of a space."""

from __future__ import annotations

from collections.abc import Callable

from hwnas.space import Arch, SearchSpace


def largest_arch(space: SearchSpace) -> Arch:
    """The architecture with the largest option of every slot: the largest number, or what has the most MACs."""
    return _extreme_arch(space, max)


def smallest_arch(space: SearchSpace) -> Arch:
    """The architecture with the smallest option of every slot."""
    return _extreme_arch(space, min)


def _extreme_arch(space: SearchSpace, which: Callable[..., int]) -> Arch:
    numbers = [all(isinstance(option, int | float) for option in slot.options) for slot in space.slots]
    arch = [
        slot.options.index(which(slot.options)) if is_number else which(range(len(slot.options)))
        for slot, is_number in zip(space.slots, numbers, strict=True)
    ]
    for number in [number for number, is_number in enumerate(numbers) if not is_number]:

        def macs(option: int, number: int = number) -> int:
            return sum(block.macs for block in space.blocks((*arch[:number], option, *arch[number + 1 :])))

        arch[number] = which(range(len(space.slots[number].options)), key=macs)
    return space.check(arch)
