"""The zero-shot scores of many architectures, in this process or in as many as there are cores.

Every network is scored on one thread: a result does not depend on how many processes or cores there are. Small networks
would hardly gain from more threads, and processes scale with cores.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.errors import RunError
from hwnas.space import Arch, SearchSpace
from hwnas.spaces import make_space
from hwnas.train.isolation import at_most_threads
from hwnas.train.preprocess import normalise
from hwnas.zeroshot import ScoreResult, compute_scores

# Processes take some seconds to begin; they must save more than that.
WORTH_SECONDS = 10.0
# The seed of the next draw, so far away that no other run begins from it
_NEXT_DRAW = 1_000_000


def build_seeded(space: SearchSpace, arch: Arch, seed: int) -> nn.Module:
    """The network with initial weights that follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return space.build(arch)


@dataclass(frozen=True)
class Scoring:
    """How architectures are scored: all that a process needs to know.

    images (n, c, h, w) uint8 with labels (n,) int64 and mean and std of each channel, pixels in [0, 1]. The space's
    largest input is scored at `resolution` pixels, unless it is smaller, all others in proportion. A score is the mean
    over `draws` of the initial weights, each on a part of the images.
    """

    names: tuple[str, ...]
    space_name: str
    space_config: Mapping[str, Any]
    images: Tensor
    labels: Tensor
    mean: Sequence[float]
    std: Sequence[float]
    resolution: int
    seed: int
    draws: int = 1
    device: str = "cpu"

    @cached_property
    def space(self) -> SearchSpace:
        """The search space."""
        return make_space(self.space_name, dict(self.space_config))

    def size(self, arch: Arch) -> int:
        """The pixels along a side of the images that an architecture is scored on."""
        largest = max(self.space.largest_input[1:])
        return max(1, round(self.space.input_shape(arch)[1] * min(1.0, self.resolution / largest)))

    def score(self, arch: Arch) -> dict[str, ScoreResult]:
        """Every score of an architecture."""
        images = normalise(self.images, self.mean, self.std, self.size(arch))
        # convolutions of small networks are faster so
        images = images.contiguous(memory_format=torch.channels_last).to(self.device)
        labels = self.labels.to(self.device)
        with at_most_threads(1):
            found = []
            for draw in range(self.draws):
                module = build_seeded(self.space, arch, self.seed + _NEXT_DRAW * draw).to(self.device)
                part = slice(draw, None, self.draws)
                found.append(compute_scores(self.names, module, images[part], labels[part], seed=self.seed + draw))
        return {name: mean_result([results[name] for results in found]) for name in self.names}


def mean_result(results: Sequence[ScoreResult]) -> ScoreResult:
    """The mean of those that are defined, with the seconds of all; undefined, by the first reason, if none is."""
    values = [result.value for result in results if result.value is not None]
    seconds = sum(result.seconds for result in results)
    if not values:
        return ScoreResult(None, results[0].reason, seconds)
    return ScoreResult(statistics.fmean(values), None, seconds)


class Scorers:
    """Scores architectures in `workers` processes; None: as many as cores, once they are worth it. A context manager.

    On a GPU there is one process.
    """

    def __init__(self, scoring: Scoring, workers: int | None = None) -> None:
        self._scoring = scoring
        self._workers = workers or cores()
        self._at_once = workers is not None
        if torch.device(scoring.device).type != "cpu":
            self._workers = 1
        self._pool: ProcessPoolExecutor | None = None
        self._seconds: list[float] = []  # what each network took that was scored in this process

    def __enter__(self) -> Scorers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def score(self, archs: Sequence[Arch]) -> Iterator[tuple[Arch, dict[str, ScoreResult]]]:
        """The scores of each architecture, as they become known. Raises RunError if a process dies."""
        waiting = list(archs)
        while waiting and not self._worth(len(waiting)):
            arch = waiting.pop(0)
            yield arch, self._timed(arch)
        if not waiting:
            return
        if self._pool is None:
            # spawned, since a forked process that uses torch's threads can hang
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, _begin, (self._scoring,))
        try:
            futures = {self._pool.submit(_score, arch): arch for arch in waiting}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise RunError(
                f"one of {self._workers} processes that score networks died, perhaps for lack of memory; what was "
                "scored is kept: run the same command again, with search.workers = 1 if it happens again"
            ) from error

    def _worth(self, remaining: int) -> bool:
        """Whether to leave the rest to other processes."""
        if self._workers == 1:
            return False
        if self._pool is not None or self._at_once:
            return True
        # the first network also pays for what torch loads and prepares
        return len(self._seconds) > 1 and self._seconds[-1] * remaining * (1 - 1 / self._workers) > WORTH_SECONDS

    def _timed(self, arch: Arch) -> dict[str, ScoreResult]:
        started = time.perf_counter()
        found = self._scoring.score(arch)
        self._seconds.append(time.perf_counter() - started)
        return found


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_scoring: Scoring | None = None


def _begin(scoring: Scoring) -> None:
    """What a process does first."""
    global _scoring
    _scoring = scoring
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A parent that is killed cannot tell its processes to end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _score(arch: Arch) -> dict[str, ScoreResult]:
    assert _scoring is not None
    return _scoring.score(arch)
