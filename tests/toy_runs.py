"""Runs so small that a search takes a second or two: made-up latency tables, tiny networks, a part of the digits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hwnas.latency.index import BlockIndex
from hwnas.recipe import parse_recipe
from hwnas.run import Run, train_study
from hwnas.search.study import ARCH
from hwnas.space import format_arch
from hwnas.spaces import make_space
from hwnas.trained import SUFFIX, trained_front, weights_path
from hwprof.table import LatencyTable, Row, write_table
from hwprof.target import Target

SPACES: dict[str, dict[str, Any]] = {
    "nasbench201": {"channels": 2, "cells": 1, "resolution": 8, "in_channels": 1, "num_classes": 10},
    "morph": {
        "resolution": 8, "in_channels": 1, "num_classes": 10, "widths": [8, 16, 24], "kernels": [3], "stages": 1,
        "max_depth": 2,
    },
}  # fmt: skip
# What each sampler is tried on.
SEARCHES = {
    "surrogate": ("nasbench201", 'score = "macs"\nevaluations = 8\nworkers = 1\n'),
    "lemonade": ("morph", "sampler_options = {start = 2, proposals = 4}\n"),
    "TPESampler": ("nasbench201", "sampler_options = {n_startup_trials = 2}\n"),
}


def recipe_text(folder: Path, sampler: str, *, name: str = "toy", search: str = "", train: str = "") -> str:
    """A recipe of a search whose runs and table are in the folder."""
    space, options = SEARCHES[sampler]
    lines = [f"{key} = {json.dumps(value)}" for key, value in SPACES[space].items()]
    return (
        f'name = "{name}"\nruns = "{(folder / "runs").as_posix()}"\n[data]\nsource = "digits"\nvalid_fraction = 0.8\n'
        f'[space]\nname = "{space}"\n' + "\n".join(lines) + f'\n[profile]\ntable = "{table_path(folder, space)}"\n'
        f'[search]\nsampler = "{sampler}"\ntrainings = 6\nbatch = 3\n{options}{search}\n'
        f'[train]\nepochs = 2\ndevice = "cpu"\nthreads = 1\n{train}\n'
    )


def table_path(folder: Path, name: str) -> str:
    """A latency table of a space, made up of its blocks' MACs."""
    path = folder / f"{name}.json"
    if not path.exists():
        index = BlockIndex(make_space(name, SPACES[name]))
        rows = {block.key: Row(1e-3 + 1e-6 * block.macs, 0.0, 1) for block in index.blocks}
        write_table(LatencyTable(Target(), {"cpu": "none"}, {}, 0.01, (), None, rows), path)
    return path.as_posix()


def toy_run(text: str) -> Run:
    """The run of a recipe."""
    return Run(parse_recipe(text), text)


def story(run: Run) -> dict[str, Any]:
    """All that a search leaves and that must not depend on kills, as JSON has it."""
    trials = train_study(run).get_trials(deepcopy=False)
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    return {
        "trials": [
            [
                trial.number,
                trial.state.name,
                trial.values,
                {key: trial.user_attrs.get(key) for key in (ARCH, "parent", "curve", "inherited", "skipped", "reason")},
            ]
            for trial in trials
        ],
        "front": [format_arch(arch) for arch in trained_front(run)],
        "weights": {trial.user_attrs[ARCH]: _digest(run, trial.user_attrs[ARCH]) for trial in finished},
        "left": sorted(path.name for path in (run.folder / "weights").iterdir() if path.suffix != SUFFIX),
    }


def _digest(run: Run, arch: str) -> str:
    import hashlib

    path = weights_path(run, tuple(map(int, arch.split("-"))))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Search as the recipe at the path given says, and print the story: a process to be killed."""
    from hwnas.pipeline import search_stage

    run = toy_run(Path(sys.argv[1]).read_text(encoding="utf-8"))
    search_stage(run)
    print(json.dumps(story(run)))  # noqa: T201


if __name__ == "__main__":
    main()
