"""What a worker process is told, and what it does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from hwnas.errors import HwnasError, RunError
from hwnas.recipe import Recipe
from hwnas.run import Run
from hwnas.scoring import cores
from hwnas.searching import search_networks
from hwprof.errors import HwprofError


@dataclass(frozen=True)
class Job:
    """A run for one of `workers` processes, each with a share of `gpus` GPUs; relative paths start from `folder`."""

    recipe: Recipe
    recipe_text: str
    folder: str
    workers: int
    gpus: float


def job_of(run: Run, workers: int) -> Job:
    """The run as a job of this many processes."""
    return Job(run.recipe, run.recipe_text, str(Path.cwd()), workers, run.recipe.search.gpus)


def work(job: Job, threads: int | None = None) -> Exception | None:
    """Search together with the other workers until nothing is left; the error that ends the search for all, if any.

    `threads`: of torch, unless the recipe says. Any other error is raised: another worker may do better.
    """
    try:
        try:
            os.chdir(job.folder)
        except OSError as error:
            raise RunError(
                f"a worker cannot enter {job.folder} ({error}); all machines need the same folder, on a file system "
                "that they share"
            ) from error
        if threads is not None and job.recipe.train.threads is None:
            torch.set_num_threads(threads)
        search_networks(Run(job.recipe, job.recipe_text), workers=job.workers)
    except (HwnasError, HwprofError) as error:
        return error
    return None


def threads_each(workers: int) -> int:
    """The threads of torch that each of so many processes of this machine may use."""
    return max(1, cores() // workers)
