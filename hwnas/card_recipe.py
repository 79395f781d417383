"""The recipe of one network, made of a card that may come from anybody.

A card says how its network was trained. It does not say where to compute, read or write here: its device, its data, its
table, its folders and its database are those of another person's machine. They are not used; a device or data that are
not on every machine must be named by whoever runs this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas.card import Card
from hwnas.errors import RecipeError
from hwnas.printable import printable
from hwnas.recipe import Recipe, parse_recipe
from hwnas.sections import ProfileSection, SearchSection
from hwprof.runtimes import RUNTIMES

# What is the same on every machine, and needs no word.
LOCAL, DIGITS = "local", "digits"
_NAME = 80  # characters of the card's name of its run that go into that of this one
# What a card may ask for: a stranger's should not bring the machine down.
_MOST = {
    "target": {"batch": 4096, "threads": 256},
    "profile": {"networks": 1000, "fit": 1000, "held_out": 1000, "searched": 1000},
    "train": {"epochs": 100_000, "child_epochs": 100_000, "batch_size": 65_536},
    "supernet": {"epochs": 100_000, "fine_tune": 100_000},
}
_LEVEL = re.compile("[A-Za-z0-9+_.=-]{1,40}")


@dataclass(frozen=True)
class Given:
    """What a card does not decide: the device, the source of the images, and a latency table to use."""

    device: str | None = None
    data: str | None = None
    table: Path | None = None


def recipe_of(card: Card, folder: Path, given: Given) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe that trains the card's network alone, in `folder`, and what to tell the user before it runs.

    Raises RecipeError where the user must say what the card may not, and where a card does not say all of its training.
    """
    try:
        theirs = parse_recipe(card.recipe, "the card's recipe")
    except RecipeError as error:
        raise RecipeError(printable(str(error))) from None
    except RecursionError:
        raise RecipeError("the card's recipe is nested too deeply to be one") from None
    _require_repeatable(theirs)
    target, data = theirs.target, theirs.data
    if target.runtime not in RUNTIMES:
        raise RecipeError(f"the card's target.runtime is {target.runtime!r}; known here: {', '.join(RUNTIMES)}")
    if (precision := card.target.get("precision", target.precisions[0])) not in target.precisions:
        raise RecipeError(
            f"the card's target.precision is {precision!r}, and its recipe has {', '.join(target.precisions)}"
        )
    if not _LEVEL.fullmatch(target.optimisation):  # it names files
        raise RecipeError(f"the card's target.optimisation is {target.optimisation!r}, which is no level of a runtime")
    _require_moderate(theirs)
    device = given.device or target.device
    if given.device is None and device != LOCAL:
        raise RecipeError(
            f"the card was measured on the device {device!r}, and a card does not choose machines: name the one that "
            "you mean with --target DEVICE (--target local is this machine)"
        )
    source = given.data or data.source
    if given.data is None and source != DIGITS:
        raise RecipeError(
            f"the card's network was trained on {source!r}, and a card does not choose what is read or fetched: name "
            "your copy with --data SOURCE, e.g. --data folder:PATH or --data torchvision:NAME"
        )
    ours = Recipe(
        name=f"{theirs.name[:_NAME]}-card",
        seed=theirs.seed,
        runs=str(folder),
        target=target.model_copy(update={"device": device, "precision": precision}),
        space=theirs.space,
        data=data.model_copy(update={"source": source, "root": type(data)().root}),
        profile=ProfileSection(
            tables=str(folder / "latency_tables"),
            table=None if given.table is None else str(given.table),
            **theirs.profile.model_dump(include={*_MOST["profile"], "cool_down_seconds", "emulated"}),
        ),
        # copied: a section is made of what a recipe's text says, which for a latency is not a number
        search=SearchSection(sampler="random", trainings=1).model_copy(update={"latency": theirs.search.latency}),
        train=theirs.train.model_copy(
            update={  # the network was trained to the end, and may be on a slower machine
                "inherit": bool(card.training.lineage),
                "stopper": "none",
                "stopper_options": {},
                "timeout_seconds": None,
            }
        ),
        supernet=theirs.supernet,
    )
    return ours, tuple(_notes(card, theirs, ours))


def to_toml(recipe: Recipe) -> str:
    """A recipe as the TOML text that it is read from again."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    sections = {name: section for name, section in values.items() if isinstance(section, dict)}
    lines = ["# Written from a model card: hwnas run --from-card."]
    lines += [f"{name} = {_toml(value)}" for name, value in values.items() if name not in sections]
    for name, section in sections.items():
        lines += ["", f"[{name}]", *(f"{_key(key)} = {_toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _require_repeatable(theirs: Recipe) -> None:
    """Raise RecipeError for a network whose supernet cannot be trained again from what the card says alone."""
    supernet = theirs.supernet
    for given, reason in (
        (supernet.method == "proxyless", "of a search that a latency table steers"),
        (supernet.trained is not None, "that another run trained"),
        (supernet.minutes is not None, "that was trained for minutes, in which no two machines come equally far"),
        (supernet.sampling == "latency", "whose training a latency table steers"),
    ):
        if supernet.used and given:
            raise RecipeError(
                f"the card's network has its weights of a supernet {reason}: save the card's recipe as a file and run "
                "all of it with: hwnas run RECIPE"
            )


def _require_moderate(theirs: Recipe) -> None:
    for name, most in _MOST.items():
        section = getattr(theirs, name)
        for key, bound in most.items():
            if (value := getattr(section, key)) is not None and value > bound:
                raise RecipeError(
                    f"the card asks for {name}.{key} = {value}, from a card at most {bound} is taken: save its recipe "
                    "as a file, read it, and run that"
                )


def _notes(card: Card, theirs: Recipe, ours: Recipe) -> Iterator[str]:
    ancestors = len(card.training.lineage)
    family = f" after the {ancestors} that its weights come from" if ancestors else ""
    if ours.supernet.used:
        yield (
            f"trains a supernet for {ours.supernet.epochs:g} epochs, takes one network of it, and trains that on for "
            f"{ours.supernet.fine_tune}"
        )
    else:
        yield f"trains one network{family}, for up to {ours.train.epochs} epochs each"
    for key, value, instead in (
        ("runs", theirs.runs, ours.runs),
        ("target.device", theirs.target.device, ours.target.device),
        ("data.source", theirs.data.source, ours.data.source),
        ("data.root", theirs.data.root, ours.data.root),
        ("profile.tables", theirs.profile.tables, ours.profile.tables),
        ("profile.table", theirs.profile.table, ours.profile.table or "a table of this machine"),
        ("search.storage", theirs.search.storage and "a database", "the run folder"),
    ):
        if value is not None and value != instead:
            yield f"{key} of the card is not used: {value!r}; instead: {instead!r}"
    if ours.profile.table is None:
        yield f"the latency table is taken from {ours.profile.tables}, or measured; --table FILE takes one of yours"


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    """A plain value as TOML writes it. Strings are JSON's, whose escapes TOML has, too; DEL must be escaped."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
