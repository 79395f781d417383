"""Which trainings are worth their remaining epochs: rules that stop a training early, for one or several objectives.

A rule is a `Stopper` (`stopper.py`): a pure function of a training's curve so far, of what was known of the network
before training, and of the other trainings. A file per rule, listed here.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, cast

from hwnas.errors import RecipeError
from hwnas.search.fidelity.stopper import Stopper

# name -> where its class is; its arguments but `max_epochs` are the options of that name
STOPPERS = {
    "none": "hwnas.search.fidelity.none:NoStopping",
    "successive_halving": "hwnas.search.fidelity.successive_halving:SuccessiveHalving",
    "hyperband": "hwnas.search.fidelity.hyperband:Hyperband",
    "curve_ranking": "hwnas.search.fidelity.curve_ranking:CurveRanking",
}


def stopper_class(name: str) -> type[Stopper]:
    """The class of a rule. Raises RecipeError on an unknown name."""
    if name not in STOPPERS:
        near = difflib.get_close_matches(name, STOPPERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(STOPPERS)}"
        raise RecipeError(f"unknown rule to stop trainings {name!r}; {hint}")
    module, attribute = STOPPERS[name].split(":")
    return cast("type[Stopper]", getattr(importlib.import_module(module), attribute))


def stopper_options(name: str) -> dict[str, Any]:
    """The options of a rule with their defaults."""
    parameters = inspect.signature(stopper_class(name)).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key != "max_epochs"}


def make_stopper(name: str, options: Mapping[str, Any], max_epochs: int) -> Stopper:
    """The rule of that name for trainings of `max_epochs` epochs.

    Raises RecipeError on an unknown name or option, or values that cannot be used.
    """
    known = stopper_options(name)
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its options: {', '.join(known) or 'none'}"
            raise RecipeError(f"the rule {name} has no option {key} (given {value!r}); {hint}")
    return stopper_class(name)(max_epochs=max_epochs, **options)
