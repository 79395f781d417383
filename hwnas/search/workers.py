"""Who evaluates which trial: so that many processes share a study, and what a dead one left is taken up by another.

A worker notes its name on every trial that it begins, and its heartbeat in the study, through the study's own storage,
whichever that is. A trial that runs under a worker that no longer beats is adopted, with its number and its parameters:
what it had computed is found where the worker had written it.

Storages have no lock that all of them share. Trials have numbers, though, which all workers agree on: whoever begins a
trial waits until those before it have their architectures, so that no two workers choose the same.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from hwnas.search.processes import is_dead, this_process

WORKER = "worker"  # user attribute of a trial: who evaluates it
_ALIVE = "alive:"  # user attributes of a study: a worker's last heartbeat, seconds since 1970

BEAT_SECONDS = 20.0
GRACE_SECONDS = 120.0
# Two workers may see the same free trial: the last to write its name has it, which both know after so long.
_SETTLE_SECONDS = 0.5


@dataclass(frozen=True)
class Standing:
    """A study's trials as one worker sees them at one moment: its own that run, and how many run elsewhere."""

    trials: Sequence[FrozenTrial]
    own: Sequence[Trial]
    elsewhere: int


class Worker:
    """This process as one of those that evaluate a study's trials; a context manager, within which it beats."""

    def __init__(self, study: optuna.Study, *, beat: float = BEAT_SECONDS, grace: float = GRACE_SECONDS) -> None:
        self.name = f"{this_process()}:{uuid.uuid4().hex[:6]}"
        self._study, self._beat, self._grace = study, beat, grace
        # Before Optuna 5 a sampler proposes as soon as a trial is looked at: it must not be asked out of turn.
        self._bare = copy.copy(study)
        self._bare.sampler = RandomSampler()
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

    def begin(self) -> Trial:
        """A new trial of this worker's, without an architecture."""
        if self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # enqueued by the user
            trial = self._bare.ask()
            trial.set_user_attr(WORKER, self.name)
            return trial
        # as a whole: a kill leaves no trial of which nobody knows who had begun it
        self._study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={WORKER: self.name}))
        mine = [each for each in self._study.get_trials(deepcopy=False) if each.user_attrs.get(WORKER) == self.name]
        return Trial(self._bare, max(mine, key=lambda each: each.number)._trial_id)

    def standing(self) -> Standing:
        """Adopt the trials that nobody evaluates any more, and tell how things stand; own trials by number."""
        trials = self._study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        beats = self._beats()
        free = [trial for trial in running if self._is_free(trial, beats)]
        if free:
            for trial in free:
                self._study._storage.set_trial_user_attr(trial._trial_id, WORKER, self.name)
            if self._others(beats):
                time.sleep(_SETTLE_SECONDS)
            trials = self._study.get_trials(deepcopy=False)
            running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        own = [trial for trial in running if trial.user_attrs.get(WORKER) == self.name]
        own.sort(key=lambda trial: trial.number)
        return Standing(trials, [Trial(self._bare, trial._trial_id) for trial in own], len(running) - len(own))

    def companions(self) -> int:
        """How many other workers live."""
        return len(self._others(self._beats()))

    def holds(self, trial: Trial) -> bool:
        """Whether a trial is still this worker's: one that was silent for too long has lost it."""
        found = self._study._storage.get_trial(trial._trial_id)
        return found.state == TrialState.RUNNING and found.user_attrs.get(WORKER) == self.name

    def _is_free(self, trial: FrozenTrial, beats: dict[str, float]) -> bool:
        holder = trial.user_attrs.get(WORKER)
        if holder == self.name:
            return False
        if holder is None:  # its worker has only just begun it, if there is another that lives
            began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            return not self._others(beats) or time.time() - began > self._grace
        return not self._lives(holder, beats)

    def _beats(self) -> dict[str, float]:
        attributes = self._study.user_attrs
        return {key.removeprefix(_ALIVE): float(at) for key, at in attributes.items() if key.startswith(_ALIVE)}

    def _others(self, beats: dict[str, float]) -> list[str]:
        return [name for name in beats if name != self.name and self._lives(name, beats)]

    def _lives(self, name: str, beats: dict[str, float]) -> bool:
        return not is_dead(name.rpartition(":")[0]) and time.time() - beats.get(name, 0.0) <= self._grace

    def _beat_on(self) -> None:
        while not self._stop.wait(self._beat):
            with contextlib.suppress(Exception):  # a storage that is away for a moment; the next beat tries again
                self._tell(time.time())

    def _tell(self, at: float) -> None:
        self._study.set_user_attr(f"{_ALIVE}{self.name}", at)


def count_spent(trials: Sequence[FrozenTrial], evaluated: str) -> int:
    """How many trials an evaluation was spent on: complete ones, and ended ones that note it under `evaluated`."""
    return sum(
        trial.state == TrialState.COMPLETE or (trial.state.is_finished() and evaluated in trial.user_attrs)
        for trial in trials
    )
