"""The search over trained networks: ask the sampler, measure, train, tell, until the recipe's trainings are spent.

Every step follows from the recipe's seed and from what the study and the run folder hold. So a search that is killed at
any moment and run again takes the same path: trials that were begun are taken up again under their numbers.

Networks are asked for in batches, so that their latencies are measured together. Any number of processes may work on
the same run; each trains the networks of its own trials.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import optuna
from optuna.trial import Trial

from hwnas.beforehand import known_of
from hwnas.confirm import above_limit
from hwnas.errors import RunError
from hwnas.run import SURROGATE, Run, train_study
from hwnas.search.samplers import SAMPLERS, make_sampler
from hwnas.search.study import ARCH, ask_arch, failed, record_skip, recorded, settle
from hwnas.search.workers import WORKER, Worker, count_spent
from hwnas.space import parse_arch
from hwnas.training import EVALUATED, train_trial

# With so many failures and not one success, the next will fail too.
_HOPELESS = 5
_POLL_SECONDS = 1.0


def search_networks(run: Run) -> None:
    """Train as many networks as the recipe says, those of earlier calls included, together with other processes.

    Raises RunError if the first trainings all failed, and what samplers and measurements raise.
    """
    study = train_study(run)
    search = _Search(run, study)
    with Worker(study) as worker:
        while (mine := search.next(worker)) is not None:
            if not mine:
                time.sleep(_POLL_SECONDS)  # others train what is left; if they die, it is ours
                continue
            stage = f"train network {search.spent() + 1} of {run.recipe.search.trainings}"
            train_trial(run, mine[0], partial(run.progress, stage))
            search.check_hopes()


class _Search:
    """The trials of a run: which to train next."""

    def __init__(self, run: Run, study: optuna.Study) -> None:
        self._run, self._study = run, study
        section = run.recipe.search
        known = known_of(run, scored=section.sampler == SURROGATE)
        self._feasible, self._ours = known.feasible, section.sampler in SAMPLERS
        if self._ours:
            study.sampler = make_sampler(section.sampler, run.recipe.seed, known, **section.sampler_options)

    def spent(self) -> int:
        """How many evaluations were spent, by anyone."""
        return count_spent(self._study.get_trials(deepcopy=False), EVALUATED)

    def next(self, worker: Worker) -> list[Trial] | None:
        """This worker's trials, all asked for and measured, the first to be trained now.

        Empty while others train the last ones, None when there is nothing left.
        """
        section = self._run.recipe.search
        while True:
            spent = self.spent()
            trials, elsewhere = worker.running()
            trials = [trial for trial in trials if self._settled(worker, trial)]
            room = section.trainings - spent - elsewhere
            if room <= 0 and not trials:
                return [] if elsewhere else None
            wanted = min(section.batch if elsewhere else section.batch - spent % section.batch, room)
            while len(trials) < wanted:
                self._reseed()
                trial, _ = ask_arch(self._study, self._run.space, self._feasible)
                worker.take(trial)
                trials.append(trial)
            if not self._skip_slow(trials):
                return trials

    def check_hopes(self) -> None:
        """Raise RunError if everything that was trained so far failed, several times."""
        reasons = failed(self._study)
        if len(reasons) >= _HOPELESS and not recorded(self._study):
            raise RunError(
                f"the first {len(reasons)} trainings failed: {'; '.join(sorted(set(reasons.values())))}; mend that and "
                "begin anew with --fresh"
            )

    def _settled(self, worker: Worker, trial: Trial) -> bool:
        """Take up a trial that was begun before, here or elsewhere; whether it is to be trained."""
        if trial.user_attrs.get(WORKER) == worker.name:
            return True
        self._reseed(trial.number)
        if settle(self._study, self._run.space, trial, self._feasible) is not None:
            return False
        worker.take(trial)
        return True

    def _skip_slow(self, trials: Sequence[Trial]) -> bool:
        """Tell those trials as pruned that were measured above the limit; whether there are any."""
        archs = {trial.number: parse_arch(trial.user_attrs[ARCH]) for trial in trials}
        slow = above_limit(self._run, list(archs.values()))
        for trial in trials:
            if (ms := slow.get(archs[trial.number])) is not None:
                limit = self._run.recipe.search.latency
                record_skip(self._study, trial, f"measured at {ms:.4g} ms, above the limit of {limit:g} ms")
        return bool(slow)

    def _reseed(self, number: int | None = None) -> None:
        """Optuna's samplers keep a random state in memory: a new one for each trial makes a resumed search the same."""
        if self._ours:
            return
        number = len(self._study.get_trials(deepcopy=False)) if number is None else number
        section = self._run.recipe.search
        self._study.sampler = make_sampler(section.sampler, self._run.recipe.seed + number, **section.sampler_options)
