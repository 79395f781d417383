"""Recipes: a TOML file that says what to profile, search, train and export, checked before anything runs.

Every key has a default and a unit in its name or its value; an unknown key, a wrong type or a wrong unit is one message
that names the key, the value and what is accepted.
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from hwnas.errors import RecipeError
from hwnas.sections import (
    DataSection,
    ProfileSection,
    QuantiseSection,
    SearchSection,
    Section,
    SpaceSection,
    SupernetSection,
    TargetSection,
    TrainSection,
)
from hwprof.errors import HwprofError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Keys that say where a run computes, which may change while it goes on.
_WHERE = {"search.executor", "search.workers", "search.gpus"}


class Recipe(Section):
    """A whole recipe. `runs` is the folder in which the run's own folder, named like the recipe, is made."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(default=0, ge=0)
    runs: str = "runs"
    target: TargetSection = TargetSection()
    space: SpaceSection = SpaceSection()
    data: DataSection = DataSection()
    profile: ProfileSection = ProfileSection()
    search: SearchSection = SearchSection()
    train: TrainSection = TrainSection()
    supernet: SupernetSection = SupernetSection()
    quantise: QuantiseSection = QuantiseSection()

    @model_validator(mode="after")
    def _a_table_for_every_precision(self) -> Recipe:
        if self.profile.table is not None and len(self.tables) != len(self.target.precisions):
            raise ValueError(
                f"profile.table names {len(self.tables)} tables for {len(self.target.precisions)} precisions; give one "
                "for each, in the order of target.precision"
            )
        return self

    @property
    def tables(self) -> tuple[str, ...]:
        """The latency tables that it names, in the order of its precisions as they are written."""
        given = self.profile.table
        return (given,) if isinstance(given, str) else tuple(given or ())

    def at(self, precision: str) -> Recipe:
        """The recipe of one of its precisions alone, with that one's table."""
        given = [self.target.precision] if isinstance(self.target.precision, str) else self.target.precision
        table = dict(zip(given, self.tables, strict=False)).get(precision)
        target = self.target.model_copy(update={"precision": precision})
        profile = self.profile.model_copy(update={"table": table})
        return self.model_copy(update={"target": target, "profile": profile})

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.runs) / self.name


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises RecipeError with the key, the value and the fix."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}; write one with: hwnas new {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, source: str = "the recipe") -> Recipe:
    """A recipe from its TOML text; `source` names it in errors."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and lists in lists in lists
        raise RecipeError(f"{source} is not valid TOML: {error}") from error
    try:
        recipe = Recipe.model_validate(values)
        for precision in recipe.target.precisions:
            recipe.target.target(precision)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(source, dict(problem)) for problem in error.errors())) from None
    except HwprofError as error:
        raise RecipeError(f"{source}: {error}") from error
    return recipe


def _explain(source: str, problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    value = problem["input"]
    if problem["type"] == "missing":
        return f"{source}: the key {key} is missing"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{source}: unknown key {key} = {value!r}; {hint}"
    message = re.sub("^Value error, ", "", str(problem["msg"]))
    return f"{source}: {key} = {value!r}: {message[0].lower()}{message[1:]}"


def _known_keys(path: tuple[Any, ...]) -> list[str]:
    section: Any = Recipe
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ, those aside that say where a run computes and not what."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return sorted(key for key in {*before, *after} - _WHERE if before.get(key) != after.get(key))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
