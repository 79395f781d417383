"""Optuna is the memory of a run: what was really evaluated is a trial in a journal file, so a killed run goes on.

Trials carry the architecture as text in the user attribute 'arch', and as parameters (slot name -> option), so that
every sampler and every plot of Optuna understands them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from hwnas.errors import InfeasibleError, RunError
from hwnas.search.constraints import LIMITS, breaches, set_constraints, system_attributes
from hwnas.search.problem import Objective, check_objectives
from hwnas.search.storage import open_storage, shown
from hwnas.space import Arch, IntMatrix, SearchSpace, format_arch, parse_arch

Feasible = Callable[[IntMatrix], NDArray[np.bool_]]

ARCH = "arch"  # user attribute: the canonical architecture as text
REASON = "reason"  # user attribute of a FAIL trial: why the evaluation failed
STOPPED = "stopped"  # user attribute of a trial whose evaluation was ended early: why
SKIPPED = "skipped"  # user attribute of a trial that was asked for and not evaluated: why

_REPEATED = "was evaluated before"


def open_study(
    place: Path | str, name: str, objectives: Sequence[Objective], sampler: BaseSampler | None = None
) -> optuna.Study:
    """The study of that name in a journal file or a storage (see `storage.py`), made if it is not there.

    Limits may change from run to run; the study holds them, so that dashboards and samplers know what keeps them.
    Raises RunError if the journal is damaged beyond its last line, or holds a study of this name whose objectives have
    other names, units, directions or another order, and what `open_storage` raises.
    """
    check_objectives(objectives)
    storage = open_storage(place)
    directions = [objective.direction for objective in objectives]
    labels = [objective.label for objective in objectives]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))  # it announces every study it opens
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, sampler=sampler, load_if_exists=True
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    if study.metric_names is None and not study.get_trials(deepcopy=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(labels)
    names = study.metric_names if isinstance(study.metric_names, list) else []
    found = list(zip(names, (d.name.lower() for d in study.directions), strict=False))
    if found != list(zip(labels, directions, strict=True)):
        raise RunError(
            f"study {name!r} in {shown(place)} was made for {_listed(found)}; asked for "
            f"{_listed(zip(labels, directions, strict=True))}: use another run folder"
        )
    limits = {one.label: one.limit for one in objectives if one.limit is not None}
    if study.user_attrs.get(LIMITS, {}) != limits:
        study.set_user_attr(LIMITS, limits)
    return study


def record_trial(
    study: optuna.Study,
    space: SearchSpace,
    arch: Sequence[int],
    values: Sequence[float],
    user_attrs: Mapping[str, Any] | None = None,
    *,
    trial: Trial | None = None,
) -> None:
    """Record an evaluated architecture: values in the order of the objectives, attributes as JSON can hold them.

    `trial` is the one that `ask_arch` gave, if it did: telling it is what lets its sampler learn. Raises RunError
    unless there is one finite value per objective.
    """
    arch, values = space.check(arch), [float(value) for value in values]
    if len(values) != len(study.directions) or not np.isfinite(values).all():
        raise RunError(
            f"architecture {format_arch(arch)} needs {len(study.directions)} finite values, got {values}; "
            "an evaluation that went wrong is recorded with record_failure"
        )
    _finish(study, space, arch, TrialState.COMPLETE, values, dict(user_attrs or {}), trial)


def record_failure(
    study: optuna.Study, space: SearchSpace, arch: Sequence[int], reason: str, *, trial: Trial | None = None
) -> None:
    """Record that an architecture could not be evaluated, and why."""
    _finish(study, space, space.check(arch), TrialState.FAIL, None, {REASON: reason}, trial)


def recorded(study: optuna.Study) -> dict[Arch, FrozenTrial]:
    """The complete trials by architecture, the first of each; what a resumed run need not evaluate again."""
    found: dict[Arch, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if ARCH in trial.user_attrs:
            if not _are_values(trial.values, len(study.directions)):
                raise RunError(
                    f"trial {trial.number} of study {study.study_name!r} has values {trial.values}, not a finite one "
                    "for each objective; restore the journal or move it away"
                )
            found.setdefault(parse_arch(trial.user_attrs[ARCH]), trial)
    return found


def _are_values(values: Any, count: int) -> bool:
    """Whether values, which a journal may hold as anything, are finite numbers, one for each objective."""
    numbers = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
    return numbers and len(values) == count and all(abs(value) <= sys.float_info.max for value in values)


def failed(study: optuna.Study) -> dict[Arch, str]:
    """The reason of the last failure of every architecture that failed and was not evaluated since."""
    done = recorded(study)
    reasons = {
        parse_arch(trial.user_attrs[ARCH]): str(trial.user_attrs[REASON])
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if {REASON, ARCH} <= trial.user_attrs.keys()
    }
    return {arch: reason for arch, reason in reasons.items() if arch not in done}


def suggest(trial: optuna.trial.BaseTrial, space: SearchSpace) -> Arch:
    """The canonical architecture that a trial's sampler chooses, slot by slot."""
    choice: dict[str, Any] = {slot.name: trial.suggest_categorical(slot.name, slot.options) for slot in space.slots}
    return space.arch_of(choice)


def ask_arch(
    study: optuna.Study, space: SearchSpace, feasible: Feasible | None = None, max_tries: int = 100
) -> tuple[Trial, Arch]:
    """Ask the study's sampler for a new architecture; end the trial with `record_trial` or `record_failure`.

    An architecture that breaks a limit known before evaluation, (n, slots) -> (n,) `feasible`, or that has a trial
    already is told as pruned: samplers that learn from pruned trials (TPE) move on, the others just ask again. Raises
    InfeasibleError after `max_tries` of them, not counting as many repetitions as there are trials.
    """
    tries = Tries(study, space, max_tries)
    while True:
        trial = study.ask()
        reason = settle(study, space, trial, feasible)
        if reason is None:
            return trial, parse_arch(trial.user_attrs[ARCH])
        tries.count(reason)


class Tries:
    """How often a sampler proposed nothing new within the limits, and when that is too often."""

    def __init__(self, study: optuna.Study, space: SearchSpace, most: int = 100) -> None:
        self._study, self._space, self._most = study, space, most
        # a seeded sampler in a resumed run begins with what it asked in the first: those repetitions are no sign of an
        # end
        self._free, self._infeasible, self._repeated = len(study.get_trials(deepcopy=False)), 0, 0

    def count(self, reason: str) -> None:
        """Count a proposal that `settle` refused. Raises InfeasibleError after too many."""
        self._repeated += reason == _REPEATED
        self._infeasible += reason != _REPEATED
        if self._infeasible + max(self._repeated - self._free, 0) >= self._most:
            raise InfeasibleError(
                f"{type(self._study.sampler).__name__} found no new architecture of {self._space.name} in "
                f"{self._infeasible + self._repeated} tries: {self._infeasible} broke a limit known before evaluation, "
                f"{self._repeated} were evaluated before; relax a limit, widen the space, or take another sampler"
            )


def settle(study: optuna.Study, space: SearchSpace, trial: Trial, feasible: Feasible | None = None) -> str | None:
    """Let the sampler choose a trial's architecture, unless it has one; None, or why it was told as pruned."""
    if ARCH in trial.user_attrs:
        return None
    # A killed process may have drawn some parameters. All are drawn again: samplers take them from one random state.
    trial._cached_frozen_trial.params, trial._cached_frozen_trial.distributions = {}, {}
    study._thread_local.cached_all_trials = None  # as Study.ask does, which may have been another's
    arch = suggest(trial, space)
    if arch in _asked(study, trial.number):
        reason = _REPEATED
    elif feasible is not None and not feasible(np.array([arch], dtype=np.int64))[0]:
        reason = "breaks a limit known before evaluation"
    else:
        trial.set_user_attr(ARCH, format_arch(arch))
        return None
    record_skip(study, trial, f"architecture {format_arch(arch)} {reason}")
    return reason


def record_skip(study: optuna.Study, trial: Trial, reason: str, broken: Mapping[str, float] | None = None) -> None:
    """Record that a trial's architecture was not evaluated, and why; `broken`: by how much it breaks which limit."""
    trial.set_user_attr(SKIPPED, reason)
    set_constraints(trial, broken or {})
    _tell(study, trial, TrialState.PRUNED)


def record_stop(study: optuna.Study, trial: Trial, reason: str, user_attrs: Mapping[str, Any]) -> None:
    """Record that an evaluation was ended early since it was not worth its rest, and why."""
    for key, value in {**user_attrs, STOPPED: reason}.items():
        trial.set_user_attr(key, value)
    _tell(study, trial, TrialState.PRUNED)


def _asked(study: optuna.Study, number: int) -> set[Arch]:
    """The architectures of all trials but one that were or are being evaluated, or skipped for their own sake."""
    return {
        parse_arch(trial.user_attrs[ARCH])
        for trial in study.get_trials(deepcopy=False)
        if ARCH in trial.user_attrs and trial.number != number
    }


def _finish(
    study: optuna.Study,
    space: SearchSpace,
    arch: Arch,
    state: TrialState,
    values: list[float] | None,
    user_attrs: dict[str, Any],
    trial: Trial | None,
) -> None:
    user_attrs = {**user_attrs, ARCH: format_arch(arch)}
    broken = breaches(study, values) if values is not None else {}
    if trial is None:
        distributions: dict[str, BaseDistribution] = {
            slot.name: CategoricalDistribution(slot.options) for slot in space.slots
        }
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=values,
                params=space.describe(arch),
                distributions=distributions,
                user_attrs=user_attrs,
                system_attrs=system_attributes(broken),
            )
        )
        return
    for key, value in user_attrs.items():
        trial.set_user_attr(key, value)
    set_constraints(trial, broken)
    _tell(study, trial, state, values)


def _tell(study: optuna.Study, trial: Trial, state: TrialState, values: list[float] | None = None) -> None:
    try:
        study.tell(trial, values, state=state)
    except RuntimeError as error:
        # samplers of finite grids call Study.stop after their last trial, which Optuna forbids outside of optimize();
        # by then the trial is stored
        if "Study.stop" not in str(error):
            raise


def _listed(objectives: Any) -> str:
    return ", ".join(f"{direction} {label}" for label, direction in objectives) or "unnamed objectives"
