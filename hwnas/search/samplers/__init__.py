"""Samplers by name: ours, a file each, listed here, and every sampler of Optuna by the name of its class."""

from __future__ import annotations

import importlib
import inspect
import warnings
from typing import Any, cast

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from hwnas.errors import RecipeError
from hwnas.search.known import Known

SAMPLERS = {
    "surrogate": "hwnas.search.samplers.surrogate:SurrogateSampler",
    "lemonade": "hwnas.search.samplers.lemonade:LemonadeSampler",
    "evolution": "hwnas.search.samplers.evolution:EvolutionSampler",
    "local": "hwnas.search.samplers.local:LocalSearchSampler",
    "random": "hwnas.search.samplers.random_search:RandomSampler",
}


def make_sampler(name: str, seed: int, known: Known | None = None, **options: Any) -> BaseSampler:
    """One of `SAMPLERS`, which use what is `known`, or a class of optuna.samplers; `options` are its own arguments.

    `base_sampler` may be a name, and the grid of a GridSampler is the space of `known` unless one is given. For a study
    with trials, a seed such as `seed + len(study.trials)` keeps samplers of Optuna from asking for the same
    ones again; ours need no other. Raises RecipeError for a name or an option that there is not.
    """
    theirs = {
        found: each
        for found, each in vars(optuna.samplers).items()
        if inspect.isclass(each) and issubclass(each, BaseSampler) and not inspect.isabstract(each)
    }
    if name in SAMPLERS:
        module, attribute = SAMPLERS[name].split(":")
        made = cast("type[BaseSampler]", getattr(importlib.import_module(module), attribute))
    elif name in theirs:
        made = theirs[name]
    else:
        raise RecipeError(
            f"there is no sampler {name!r}; there are {', '.join(SAMPLERS)}, and of Optuna {', '.join(sorted(theirs))}"
        )
    accepted = inspect.signature(made).parameters
    given: dict[str, Any] = {"seed": seed, "known": known} if name in SAMPLERS else {}
    if name in theirs:
        given = {"seed": seed} if "seed" in accepted else {}
        if "search_space" in accepted and known is not None:  # GridSampler, which lists every combination
            options = {"search_space": {slot.name: list(slot.options) for slot in known.space.slots}, **options}
        if "base_sampler" in accepted:  # PartialFixedSampler
            base = options.get("base_sampler", "TPESampler")
            options = {**options, "base_sampler": make_sampler(base, seed, known) if isinstance(base, str) else base}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # the user asked for it by name
            return made(**given, **options)
    except (TypeError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        own = [key for key in accepted if key not in ("seed", "known")]
        raise RecipeError(f"sampler {name} cannot be made: {error}; its options: {', '.join(own)}") from error
