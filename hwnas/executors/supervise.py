"""Keep worker processes running until nothing is left to train: those that die are started again.

What a dead one had begun goes on where it stopped, in whichever worker takes it up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from optuna.trial import TrialState

from hwnas.errors import RunError
from hwnas.run import Run, train_study
from hwnas.searching import count_trained
from hwnas.training import MAX_ATTEMPTS

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Ending:
    """How a worker ended: with nothing left to do, with an `error` that ends the search, or it `died` of something."""

    error: Exception | None = None
    died: str | None = None


class Fleet(Protocol):
    """Worker processes by number."""

    def start(self, number: int) -> None:
        """Start a worker, also in place of one that ended."""

    def ended(self, number: int) -> Ending | None:
        """How a worker ended; None while it works."""

    def stop(self) -> None:
        """End all workers that still run."""


def supervise(run: Run, fleet: Fleet, workers: int) -> None:
    """Run `workers` workers until nothing is left; nothing is started if that is so already.

    Raises the error of a worker that ends the search, RunError if workers die again and again and no training ends.
    """
    study, total = train_study(run), run.recipe.search.trainings
    known, deaths = count_trained(study), 0
    if known >= total and not study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        return
    working = set(range(workers))
    try:
        for number in sorted(working):
            fleet.start(number)
        while working:
            run.progress(f"train networks ({workers} workers)", known, total)
            time.sleep(_POLL_SECONDS)
            if (spent := count_trained(study)) != known:
                known, deaths = spent, 0
            for number in sorted(working):
                ending = fleet.ended(number)
                if ending is None:
                    continue
                if ending.error is not None:
                    raise ending.error
                if ending.died is None:
                    working.discard(number)
                    continue
                deaths += 1
                # a network that kills its process is given up after some attempts; each worker may hold one
                if deaths > (MAX_ATTEMPTS + 1) * workers:
                    raise RunError(
                        f"workers died {deaths} times and no training ended, the last one of: {ending.died}; what was "
                        "trained is kept: mend that and run the same command again"
                    )
                fleet.start(number)
        run.progress(f"train networks ({workers} workers)", count_trained(study), total)
    finally:
        fleet.stop()
