"""`hwnas run --from-card`: train the network of a card again, alone, and put what comes out beside what it recorded.

The run has a folder of its own, and what is trained in it is a trial of its journal: killed, it goes on where it
stopped. A network whose weights were inherited needs those that it inherited from: the card names them, and they are
trained first, each from the one before, in a folder inside of the run's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from hwnas.card import Card, read_card
from hwnas.card_recipe import Given, recipe_of, to_toml
from hwnas.carding import INHERITED
from hwnas.errors import RecipeError, RunError
from hwnas.exporting import export_stage
from hwnas.pipeline import profile_stage
from hwnas.report.reproduction import Reproduction, compare
from hwnas.results import exported_file
from hwnas.run import Run, train_study
from hwnas.search.samplers.base import PARENT
from hwnas.search.study import ARCH, SKIPPED, failed, recorded, suggest
from hwnas.search.workers import Worker
from hwnas.space import Arch, format_arch, parse_arch
from hwnas.supernet.extremes import largest_arch
from hwnas.supernets import train_member
from hwnas.trained import weights_path
from hwnas.training import sweep_checkpoints, train_trial
from hwprof.files import write_atomic

RECIPE = "recipe.toml"
# The largest network that is trained because a card says so.
MOST_PIXELS, MOST_PARAMS = 4096, 10**9


def write_recipe(card: Card, folder: Path, given: Given, *, fresh: bool = False) -> tuple[Path, tuple[str, ...]]:
    """Make the run folder of a card's network below `folder`, with its recipe: the recipe's path, and what to tell.

    `fresh` moves an older folder aside. Raises what `recipe_of` raises, RunError if the folder has another recipe.
    """
    recipe, notes = recipe_of(card, folder, given)
    network = Run(recipe, "").network_name(parse_arch(card.arch))
    recipe = recipe.model_copy(update={"name": f"{recipe.name}-{network}"})
    run = Run(recipe, to_toml(recipe))
    if fresh and (older := run.move_away()) is not None:
        notes = (*notes, f"the older run is now {older}")
    run.open_folder()
    return run.folder / RECIPE, (*notes, f"all is written to {run.folder}")


def reproduce(run: Run, card: Card) -> Reproduction:
    """Train, export and measure the card's network in the run of `write_recipe`, and compare.

    Raises what `train_card`, profiling and export raise.
    """
    run.open_folder()
    _architectures(run, card)  # a card that cannot be right is told before anything is measured
    with run.timed("profile"):
        profile_stage(run)
    with run.timed("train"):
        arch = train_card(run, card)
    export_stage(run)
    file = exported_file(run, arch)
    again = read_card(file.with_name(f"{file.name}.json"))
    images = len(run.data.y_valid), len(run.data.y_test)
    return compare(card, again, images, list(_other_reasons(run)))


def train_card(run: Run, card: Card) -> Arch:
    """Train the card's network, after its ancestors or with the supernet that it is of; its architecture.

    Raises RecipeError if an architecture is not one of the recipe's space, RunError if a training fails.
    """
    arch, lineage = _architectures(run, card)
    if run.recipe.supernet.used:
        train_member(run, arch)
        return arch
    train_alone(run, arch, _train_lineage(run, lineage) if lineage else None, "train the network")
    return arch


def train_alone(run: Run, arch: Arch, parent: int | None, stage: str) -> int:
    """Train one architecture as a trial of the run's study, unless it is there; the number of its trial.

    `parent`: the number of the trial whose weights it begins with. Raises RunError if the training fails.
    """
    study = train_study(run)
    if arch not in recorded(study):
        with Worker(study) as worker:
            begun = worker.standing().own  # what a kill left
            if not begun:
                if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                    notes: dict[str, Any] = {ARCH: format_arch(arch)}
                    notes |= {} if parent is None else {PARENT: parent}
                    study.enqueue_trial(run.space.describe(arch), user_attrs=notes)
                begun = [worker.begin()]
            (trial,) = begun
            if trial.user_attrs.get(ARCH) != format_arch(arch):
                raise RunError(f"{run.folder} was begun with another card; begin anew with --fresh")
            suggest(trial, run.space)  # Optuna knows the parameters of a trial once they were asked for
            train_trial(run, trial, partial(run.progress, stage), partial(worker.holds, trial))
        sweep_checkpoints(run)
    if (done := recorded(study).get(arch)) is None:
        raise RunError(
            f"{run.network_name(arch)} could not be trained: {failed(study).get(arch, 'the training was stopped')}; "
            "mend that and run the same command again"
        )
    return done.number


def _architectures(run: Run, card: Card) -> tuple[Arch, list[Arch]]:
    """The card's architecture and its ancestors', oldest first, in the run's space."""
    space = json.loads(json.dumps({"name": run.space.name, **run.space.config}))
    if space != card.space:
        differing = sorted(key for key in {*space, *card.space} if space.get(key) != card.space.get(key))
        raise RecipeError(
            f"the card's space is not that of its recipe and data, {differing} differ: was it edited, or has the data "
            "here other classes or channels?"
        )
    arch, *lineage = (
        run.space.check(parse_arch(text)) for text in (card.arch, *(one.arch for one in card.training.lineage))
    )
    if len({arch, *lineage}) <= len(lineage):
        raise RecipeError("the card names a network twice among those that weights were inherited from: was it edited?")
    pixels = run.space.largest_input[1]
    trained = [arch, *lineage, *([largest_arch(run.space)] if run.recipe.supernet.used else [])]
    params = max(sum(block.params for block in run.space.blocks(one)) for one in trained)
    if pixels > MOST_PIXELS or params > MOST_PARAMS:
        raise RecipeError(
            f"the card's space has images of {pixels} pixels, and its networks {params} parameters; from a card at "
            f"most {MOST_PIXELS} and {MOST_PARAMS} are taken: save its recipe as a file, read it, and run that"
        )
    return arch, lineage


def _train_lineage(run: Run, lineage: Sequence[Arch]) -> int:
    """Train the ancestors, each from the one before; the number that the last one's trial has in the run's study.

    They are a run of their own, so that only the network itself is exported; in its run's study they are skipped
    trials, which say where its weights come from.
    """
    profile = run.recipe.profile.model_copy(update={"table": str(run.table_path)})
    recipe = run.recipe.model_copy(update={"name": "lineage", "runs": str(run.folder), "profile": profile})
    family = Run(recipe, to_toml(recipe), progress=run.progress)
    family.open_folder()
    family.data = run.data  # once in memory
    study = train_study(run)
    noted = {trial.user_attrs.get(ARCH): trial.number for trial in study.get_trials(deepcopy=False)}
    there: int | None = None
    here = -1
    for generation, arch in enumerate(lineage):
        there = train_alone(family, arch, there, f"train ancestor {generation + 1} of {len(lineage)}")
        step = recorded(train_study(family))[arch].user_attrs.get(INHERITED)
        notes: dict[str, Any] = {ARCH: format_arch(arch), SKIPPED: "an ancestor, trained in the folder lineage"}
        notes |= {PARENT: here, INHERITED: step} if step is not None else {}
        here = noted[notes[ARCH]] if notes[ARCH] in noted else _add(study, notes)
    weights = weights_path(run, lineage[-1])
    weights.parent.mkdir(exist_ok=True)
    write_atomic(weights, weights_path(family, lineage[-1]).read_bytes())
    return here


def _add(study: optuna.Study, notes: Mapping[str, Any]) -> int:
    """A trial that is over, with these attributes; its number."""
    number = len(study.get_trials(deepcopy=False))
    study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=dict(notes)))
    return number


def _other_reasons(run: Run) -> Iterator[str]:
    if (seconds := run.recipe.train.max_seconds) is not None:
        yield f"the training ends after {seconds:g} s, wherever it is then"
