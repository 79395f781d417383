"""Who evaluates which trial: so that many processes share a study, and what a dead one left is taken up by another.

A worker notes its name on every trial that it asks for, and its heartbeat in the study, through the study's own
storage, whichever that is. A trial that runs under a worker that no longer beats is adopted, with its number and its
parameters: what it had computed is found where the worker had written it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

WORKER = "worker"  # user attribute of a trial: who evaluates it
ATTEMPTS = "attempts"  # user attribute of a trial: how many workers have begun it
_ALIVE = "alive:"  # user attributes of a study: a worker's last heartbeat, seconds since 1970

BEAT_SECONDS = 20.0
GRACE_SECONDS = 120.0


class Worker:
    """This process as one of those that evaluate a study's trials; a context manager, within which it beats."""

    def __init__(self, study: optuna.Study, *, beat: float = BEAT_SECONDS, grace: float = GRACE_SECONDS) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        self._study, self._beat, self._grace = study, beat, grace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)

    def __enter__(self) -> Worker:
        self._tell(time.time())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # the storage may be what failed
            self._tell(0.0)

    def take(self, trial: Trial) -> None:
        """Note that this worker evaluates a trial."""
        trial.set_user_attr(WORKER, self.name)
        trial.set_user_attr(ATTEMPTS, int(trial.user_attrs.get(ATTEMPTS, 0)) + 1)

    def running(self) -> tuple[list[Trial], int]:
        """The unfinished trials that are this worker's or nobody's any more, by number, and how many others have."""
        states = (TrialState.RUNNING,)
        trials = sorted(self._study.get_trials(deepcopy=False, states=states), key=lambda trial: trial.number)
        attributes = self._study.user_attrs
        beats = {key.removeprefix(_ALIVE): float(at) for key, at in attributes.items() if key.startswith(_ALIVE)}
        free = [trial for trial in trials if self._is_free(trial, beats)]
        return [Trial(self._study, trial._trial_id) for trial in free], len(trials) - len(free)

    def _is_free(self, trial: FrozenTrial, beats: dict[str, float]) -> bool:
        holder = trial.user_attrs.get(WORKER)
        if holder == self.name:
            return True
        if holder is None:  # its worker has only just asked for it, if there is another that lives
            began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            others = [name for name in beats if name != self.name and self._lives(name, beats)]
            return not others or time.time() - began > self._grace
        return not self._lives(holder, beats)

    def _lives(self, name: str, beats: dict[str, float]) -> bool:
        host, process, _ = [*name.split(":"), "", ""][:3]
        if host == socket.gethostname() and process.isdigit() and not _is_process(int(process)):
            return False
        return time.time() - beats.get(name, 0.0) <= self._grace

    def _beat_on(self) -> None:
        while not self._stop.wait(self._beat):
            with contextlib.suppress(Exception):  # a storage that is away for a moment; the next beat tries again
                self._tell(time.time())

    def _tell(self, at: float) -> None:
        self._study.set_user_attr(f"{_ALIVE}{self.name}", at)


def _is_process(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def count_spent(trials: Sequence[FrozenTrial], evaluated: str) -> int:
    """How many trials an evaluation was spent on: complete ones, and those that note it under `evaluated`."""
    return sum(trial.state == TrialState.COMPLETE or evaluated in trial.user_attrs for trial in trials)
