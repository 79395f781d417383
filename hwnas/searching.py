"""The search over trained networks: ask the sampler, measure, train, tell, until the recipe's trainings are spent.

Every step follows from the recipe's seed and from what the study and the run folder hold. So a search that is killed at
any moment and run again takes the same path: trials that were begun are taken up again under their numbers.

Networks are asked for in batches, so that their latencies are measured together. Any number of processes may work on
the same run; each trains the networks of its own trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial

import optuna
from optuna.trial import Trial, TrialState

from hwnas.beforehand import known_of
from hwnas.confirm import above_limit
from hwnas.errors import HwnasError, RecipeError, RunError
from hwnas.run import SURROGATE, Run, train_objectives, train_study
from hwnas.search.samplers import SAMPLERS, make_sampler
from hwnas.search.study import ARCH, Tries, failed, record_skip, recorded, settle
from hwnas.search.workers import Worker, count_spent
from hwnas.space import parse_arch
from hwnas.training import EVALUATED, sweep_checkpoints, train_trial

# With so many failures and not one success, the next will fail too.
_HOPELESS = 5
_POLL_SECONDS = 1.0
_TURN_SECONDS = 0.05


def search_networks(run: Run, *, workers: int = 1) -> None:
    """Train as many networks as the recipe says, those of earlier calls included, together with other processes.

    `workers` processes are expected to do so: with several, each takes its share of a batch at a time. Raises RunError
    if the first trainings all failed, and what samplers and measurements raise.
    """
    study = train_study(run)
    with Worker(study) as worker:
        search = _Search(run, study, worker, workers)
        while (mine := search.next()) is not None:
            if not mine:
                time.sleep(_POLL_SECONDS)  # others train what is left; if they die, it is ours
                continue
            stage = f"train network {count_trained(study) + 1} of {run.recipe.search.trainings}"
            train_trial(run, mine[0], partial(run.progress, stage), partial(worker.holds, mine[0]))
            search.check_hopes()
    sweep_checkpoints(run)


def count_trained(study: optuna.Study) -> int:
    """How many trainings were spent, by anyone, whatever came of them."""
    return count_spent(study.get_trials(deepcopy=False), EVALUATED)


class _Search:
    """The trials of a run: which to train next."""

    def __init__(self, run: Run, study: optuna.Study, worker: Worker, workers: int) -> None:
        self._run, self._study, self._worker, self._workers = run, study, worker, workers
        section = run.recipe.search
        known = self._known = known_of(run, scored=section.sampler == SURROGATE)
        self._feasible, self._ours = known.feasible, section.sampler in SAMPLERS
        if self._ours:
            study.sampler = make_sampler(section.sampler, run.recipe.seed, known, **section.sampler_options)

    def next(self) -> list[Trial] | None:
        """This worker's trials, all asked for and measured, the first to be trained now.

        Empty while others train the last ones, None when there is nothing left.
        """
        section = self._run.recipe.search
        while True:
            standing = self._worker.standing()
            trials = [mine for trial in standing.own if (mine := self._settled(trial)) is not None]
            # a search that was killed while it left out slow ones first goes on with that, as it would have done
            if self._skip_slow(trials, measure=False):
                continue
            spent = count_spent(standing.trials, EVALUATED)
            room = section.trainings - spent - standing.elsewhere
            if room <= 0 and not trials:
                return [] if standing.elsewhere else None
            wanted = section.batch - spent % section.batch
            if (others := max(self._workers - 1, self._worker.companions())) > 0:
                wanted = min(section.batch, math.ceil(room / (1 + others)))
            while len(trials) < min(wanted, room):
                if (trial := self._ask()) is None:  # others were faster
                    break
                trials.append(trial)
            if not self._skip_slow(trials) and trials:
                return trials

    def check_hopes(self) -> None:
        """Raise RunError if everything that was trained so far failed, several times."""
        reasons = failed(self._study)
        if len(reasons) >= _HOPELESS and not recorded(self._study):
            raise RunError(
                f"the first {len(reasons)} trainings failed: {'; '.join(sorted(set(reasons.values())))}; mend that and "
                "begin anew with --fresh"
            )

    def _ask(self) -> Trial | None:
        """A new trial with an architecture that no other has; None if others have begun all that there are to be.

        Raises InfeasibleError if the sampler finds none.
        """
        tries = Tries(self._study, self._run.space)
        while True:
            trial = self._worker.begin()
            self._await_turn(trial.number)
            before = [one for one in self._study.get_trials(deepcopy=False) if one.number < trial.number]
            begun = sum(one.state == TrialState.RUNNING for one in before) + count_spent(before, EVALUATED)
            if begun >= self._run.recipe.search.trainings:
                record_skip(self._study, trial, "enough others were begun before")
                return None
            self._reseed(trial.number)
            trial = Trial(self._study, trial._trial_id)  # now its sampler may propose
            try:
                reason = settle(self._study, self._run.space, trial, self._feasible)
            except ValueError as error:  # what a sampler cannot do, such as several objectives
                if isinstance(error, HwnasError):
                    raise
                name = self._run.recipe.search.sampler
                raise RecipeError(f"search.sampler = {name!r} cannot be used here: {error}") from error
            if reason is None:
                return trial
            tries.count(reason)

    def _await_turn(self, number: int) -> None:
        """Wait until all running trials before this one have their architectures; settle those of the dead."""
        while True:
            standing = self._worker.standing()
            for trial in standing.own:
                if trial.number < number:
                    self._settled(trial)
            own = {trial.number for trial in standing.own}
            if not any(
                one.state == TrialState.RUNNING
                and one.number < number
                and one.number not in own
                and ARCH not in one.user_attrs
                for one in standing.trials
            ):
                return
            time.sleep(_TURN_SECONDS)

    def _settled(self, trial: Trial) -> Trial | None:
        """A trial that was begun before, here or elsewhere, with its architecture; None if it is not to be trained."""
        if ARCH in trial.user_attrs:
            return trial
        self._reseed(trial.number)
        trial = Trial(self._study, trial._trial_id)
        return None if settle(self._study, self._run.space, trial, self._feasible) is not None else trial

    def _skip_slow(self, trials: Sequence[Trial], *, measure: bool = True) -> bool:
        """Tell those trials as pruned that were measured above the limit; whether there are any."""
        archs = {trial.number: parse_arch(trial.user_attrs[ARCH]) for trial in trials}
        slow = above_limit(self._run, list(archs.values()), measure=measure)
        limit, latency = self._run.recipe.search.latency, train_objectives(self._run)[1]
        for trial in trials:
            if (ms := slow.get(archs[trial.number])) is not None and limit is not None:
                reason = f"measured at {ms:.4g} ms, above the limit of {limit:g} ms"
                record_skip(self._study, trial, reason, {latency.label: ms - limit})
        return bool(slow)

    def _reseed(self, number: int) -> None:
        """Optuna's samplers keep a random state in memory: a new one for each trial makes a resumed search the same."""
        if self._ours:
            return
        section = self._run.recipe.search
        seed = self._run.recipe.seed + number
        self._study.sampler = make_sampler(section.sampler, seed, self._known, **section.sampler_options)
