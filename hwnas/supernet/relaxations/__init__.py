"""Relaxations by the name of their space: a file each, listed here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import cast

from hwnas.errors import SpaceError
from hwnas.space import Option, SearchSpace
from hwnas.supernet.relaxed import Relaxation

RELAXATIONS = {
    "mobilenetv3": "hwnas.supernet.relaxations.mobilenetv3:relax_mobilenetv3",
    "nasbench201": "hwnas.supernet.relaxations.nasbench201:relax_nasbench201",
    "resnet": "hwnas.supernet.relaxations.resnet:relax_resnet",
}


def relax(space: SearchSpace, fixed: Mapping[str, Option] | None = None) -> Relaxation:
    """The relaxation of a space, with the options of slots that no edge decides (an input's resolution, say).

    Raises SpaceError for a space that has none, and where `fixed` lacks a slot or has another.
    """
    if space.name not in RELAXATIONS:
        raise SpaceError(f"no relaxation of the space {space.name}; there are some of: {', '.join(RELAXATIONS)}")
    module, attribute = RELAXATIONS[space.name].split(":")
    maker = cast(
        "Callable[[SearchSpace, Mapping[str, Option]], Relaxation]",
        getattr(importlib.import_module(module), attribute),
    )
    return maker(space, fixed or {})


def fixed_options(space: SearchSpace, slots: tuple[int, ...], fixed: Mapping[str, Option]) -> dict[int, int]:
    """Slot -> option index: what is fixed, or the only option there is.

    Raises SpaceError if several options are left, or if `fixed` names another slot or option.
    """
    names = [space.slots[slot].name for slot in slots]
    unknown = sorted(set(fixed) - set(names))
    if unknown:
        raise SpaceError(f"{unknown[0]!r} is no slot of {space.name} that can be fixed; those are: {names}")
    found = {}
    for slot, name in zip(slots, names, strict=True):
        options = space.slots[slot].options
        option = fixed.get(name, options[0]) if len(options) == 1 else fixed.get(name)
        if option not in options:
            raise SpaceError(
                f"a relaxation of {space.name} needs one {name} of {options}, got {option!r}; choose one, such as "
                f"supernet.fixed = {{ {name} = {options[-1]} }}"
            )
        found[slot] = options.index(option)
    return found
