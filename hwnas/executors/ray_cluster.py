"""Workers on a Ray cluster (https://docs.ray.io): Ray finds machines with free cores and GPUs for them.

The run folder must be on a file system that all machines share. The cluster is that of the environment variable
RAY_ADDRESS, else one that runs on this machine, else one that Ray starts here.
"""

from __future__ import annotations

import importlib
import logging
import math
from typing import Any

from hwnas.errors import MissingPackageError, RunError
from hwnas.executors.job import Job, job_of, work
from hwnas.executors.supervise import Ending, supervise
from hwnas.run import Run

# Ray waits half a minute for its own processes, which can be too short where they have just been installed: the second
# time they are in memory.
ATTEMPTS = 2


def search_on_ray(run: Run) -> None:
    """Train the networks of a run in `search.workers` processes of a cluster; None: as many as it has room for.

    Each takes `train.threads` cores (None: one) and a share of `search.gpus` of a GPU. Raises MissingPackageError
    without Ray, RunError if it does not start.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingPackageError('search.executor = "ray" needs Ray: pip install "hwnas[ray]"') from error
    section, threads = run.recipe.search, run.recipe.train.threads or 1
    own = not ray.is_initialized()
    if own:
        _start(ray)
    try:
        room = ray.cluster_resources()
        places = room.get("GPU", 0.0) / section.gpus if section.gpus else room.get("CPU", 1.0) / threads
        workers = section.workers or max(1, math.floor(places))
        supervise(run, RayWorkers(ray, job_of(run, workers), threads), workers)
    finally:
        if own:
            ray.shutdown()


def _start(ray: Any, attempts: int = ATTEMPTS) -> None:
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # plain ones, too, where it gave up waiting for its own processes
        if attempts > 1:
            return _start(ray, attempts - 1)
        raise RunError(
            f"Ray did not start: {error}; run the same command again when this machine is less busy, set RAY_ADDRESS "
            'to a cluster, or search.executor to "processes"'
        ) from error


class RayWorkers:
    """A fleet of Ray tasks, which Ray does not start again by itself: whether that helps is known here."""

    def __init__(self, ray: Any, job: Job, threads: int) -> None:
        self._ray, self._job, self._threads = ray, job, threads
        self._task = ray.remote(num_cpus=threads, num_gpus=job.gpus, max_retries=0)(work)
        self._running: dict[int, Any] = {}

    def start(self, number: int) -> None:
        self._running[number] = self._task.remote(self._job, self._threads)

    def ended(self, number: int) -> Ending | None:
        task = self._running[number]
        done, _ = self._ray.wait([task], timeout=0)
        if not done:
            return None
        try:
            return Ending(error=self._ray.get(task))
        except Exception as error:  # Ray's own errors, of a process or machine that died, and those of the task
            return Ending(died=f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")

    def stop(self) -> None:
        for task in self._running.values():
            self._ray.cancel(task, force=True)
