"""Limits as Optuna's constraints: by how much a trial breaks each, for dashboards and samplers.

A study holds its limits by the labels of its objectives; above 0 a constraint is broken. Since Optuna 5 constraints
have names; its dashboard (0.21) and older samplers know them as a list only, so trials have both.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import Trial

LIMITS = "limits"  # user attribute of a study: the limit of each objective that has one, in its unit

_OLD, _NEW = "constraints", "constraints:"  # system attributes of a trial before Optuna 5, and since


def breaches(study: optuna.Study, values: Sequence[float]) -> dict[str, float]:
    """By how much values, one of each objective, break the study's limits, in the objectives' units."""
    limits: Mapping[str, float] = study.user_attrs.get(LIMITS, {})
    if not limits:
        return {}
    return {
        label: (value - limits[label]) * (-1 if direction == StudyDirection.MAXIMIZE else 1)
        for label, value, direction in zip(study.metric_names or [], values, study.directions, strict=True)
        if label in limits
    }


def set_constraints(trial: Trial, broken: Mapping[str, float]) -> None:
    """Note on a trial by how much it breaks each limit; what it has noted already stays."""
    if not broken:
        return
    noted = trial.storage.get_trial(trial._trial_id).system_attrs
    trial.storage.set_trial_system_attr(trial._trial_id, _OLD, list(broken.values()))
    if not hasattr(trial, "set_constraint"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for label, value in broken.items():
            if _NEW + label not in noted:
                trial.set_constraint(label, value)


def system_attributes(broken: Mapping[str, float]) -> dict[str, Any]:
    """The same as the attributes of a trial that is made as a whole."""
    if not broken:
        return {}
    named = {_NEW + label: value for label, value in broken.items()} if hasattr(Trial, "set_constraint") else {}
    return {_OLD: list(broken.values()), **named}
