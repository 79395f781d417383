"""Search spaces by name: a file each, listed here."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, cast

from hwnas.errors import SpaceError
from hwnas.space import SearchSpace

SPACES = {
    "mobilenetv3": "hwnas.spaces.mobilenetv3:MobileNetV3Space",
    "nasbench201": "hwnas.spaces.nasbench201:NasBench201Space",
    "morph": "hwnas.spaces.morph:MorphSpace",
    "resnet": "hwnas.spaces.resnet:ResNetSpace",
}


def space_class(name: str) -> type[SearchSpace]:
    """The class of a space. Raises SpaceError on an unknown name."""
    if name not in SPACES:
        raise SpaceError(f"unknown space {name!r}; known: {', '.join(SPACES)}")
    module, attribute = SPACES[name].split(":")
    return cast("type[SearchSpace]", getattr(importlib.import_module(module), attribute))


def space_arguments(name: str) -> dict[str, Any]:
    """The arguments of a space with their defaults."""
    return {key: parameter.default for key, parameter in inspect.signature(space_class(name)).parameters.items()}


def make_space(name: str, arguments: Mapping[str, Any]) -> SearchSpace:
    """The space of that name. Raises SpaceError on an unknown name or argument, or arguments that do not fit."""
    known = space_arguments(name)
    for key, value in arguments.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its arguments: {', '.join(known)}"
            raise SpaceError(f"the space {name} has no argument {key} (given {value!r}); {hint}")
    try:
        return space_class(name)(**arguments)
    except (TypeError, ValueError) as error:
        if isinstance(error, SpaceError):
            raise
        raise SpaceError(f"the space {name} cannot be made of {dict(arguments)}: {error}") from error
