"""The scored architectures of a run: computed, recorded as trials, ranked.

A trial of the study "score" holds every score of an architecture in its user attributes. Its own value is what it is
searched by: of one score that score, of several its combined rank among all that were scored before it, which is what
Optuna's samplers learn from. Whoever ranks now ranks all of them anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optuna

from hwnas.errors import DataError, PredictorError, RunError
from hwnas.limits import known_limits, unlimited
from hwnas.ranks import places
from hwnas.run import SURROGATE, Run, score_objectives, score_study
from hwnas.scoring import Scorers, Scoring
from hwnas.search.assisted import assisted_search
from hwnas.search.known import Known
from hwnas.search.pareto import nondominated
from hwnas.search.problem import FloatMatrix, FloatVector, to_losses, violations
from hwnas.search.study import ask_arch, failed, record_failure, record_trial, recorded
from hwnas.space import Arch, IntMatrix, rows_of
from hwnas.train.device import training_device
from hwnas.zeroshot import ScoreResult, score_names
from hwnas.zeroshot.combine import combine, silent

SCORES, REASONS = "scores", "reasons"  # user attributes: name -> value, and name -> why there is none


def scoring_of(run: Run) -> Scoring:
    """How the architectures of a run are scored."""
    section, data = run.recipe.search, run.data
    draws = section.score_draws
    count = min(section.score_batch * draws, len(data.x_train))
    if count < 2 * draws:
        raise DataError(f"{draws} draws of scores need {2 * draws} training images at least, {data.name} has {count}")
    return Scoring(
        names=score_names(section.score),
        space_name=run.space.name,
        space_config=run.space.config,
        images=data.x_train[:count].clone(),  # a view would take the whole data set to every process
        labels=data.y_train[:count].clone(),
        mean=data.mean,
        std=data.std,
        resolution=section.score_resolution,
        seed=run.recipe.seed,
        draws=draws,
        device=str(training_device(run.recipe.train.device)),
    )


def score_networks(run: Run) -> None:
    """Score as many architectures as the recipe says, all within the limits; what is recorded counts."""
    section = run.recipe.search
    study, book = score_study(run), _Book(run, section.evaluations)
    known = Known(run.space, unlimited(score_objectives(run)), {"latency": run.searched_ms}, known_limits(run))
    with Scorers(scoring_of(run), section.workers) as scorers:

        def evaluate(archs: IntMatrix) -> FloatMatrix:
            rows = rows_of(archs)
            for arch, results in scorers.score([arch for arch in rows if arch not in book]):
                book.record(arch, results)
            return book.matrix(rows)

        if section.score_sampler == SURROGATE:
            assisted_search(
                known, evaluate, evaluations=section.evaluations, seed=run.recipe.seed, rank=partial(rank, book.names)
            )
            return
        for _ in range(len(book), section.evaluations):
            trial, arch = ask_arch(study, run.space, known.feasible)
            for _, results in scorers.score([arch]):
                book.record(arch, results, trial)


def rank(names: Sequence[str], scores: FloatMatrix) -> FloatVector:
    """(n, k) scores -> (n,) what architectures are compared by: the score itself, or the combined rank of several."""
    return combine(names, scores) if len(names) > 1 else scores[:, 0]


def ranked(run: Run) -> tuple[list[Arch], FloatMatrix]:
    """The scored architectures and their (n, 2) values now: what they are compared by, and the searched latency in ms.

    Those of which no score is defined are left out.
    """
    trials = recorded(score_study(run))
    archs = list(trials)
    values = np.empty((len(archs), 2))
    values[:, 0] = rank(score_names(run.recipe.search.score), score_matrix(run, trials, archs)) if archs else []
    values[:, 1] = [trials[arch].values[1] for arch in archs]
    return archs, values


@dataclass(frozen=True)
class ScoredNetwork:
    """A scored architecture: what it is compared by, every score (None: undefined), and its place in each among all.

    The best has place 1, equals share one, undefined scores come last.
    """

    arch: Arch
    predicted_ms: float
    value: float
    place: int
    scores: dict[str, float | None]
    places: dict[str, int]


def scored_front(run: Run) -> list[ScoredNetwork]:
    """The scored architectures that none beats in both score and searched latency, fastest first.

    Raises PredictorError if none within the limits has a score.
    """
    archs, values = ranked(run)
    objectives = score_objectives(run)
    kept = np.flatnonzero(violations(values, objectives) == 0)
    if len(kept) == 0:
        raise PredictorError(f"none of the {len(archs)} scored architectures has a score within the limits")
    front = kept[nondominated(to_losses(values[kept], objectives))]
    trials, predicted = recorded(score_study(run)), run.predictor.predict_ms(np.array(archs))
    names, matrix = score_names(run.recipe.search.score), score_matrix(run, trials, archs)
    place, each = places(values[:, 0]), np.apply_along_axis(places, 0, matrix)
    return [
        ScoredNetwork(
            arch=archs[n],
            predicted_ms=float(predicted[n]),
            value=float(values[n, 0]),
            place=int(place[n]),
            scores=scores_of(run, trials[archs[n]]),
            places=dict(zip(names, each[n].tolist(), strict=True)),
        )
        for n in front[np.argsort(values[front, 1])].tolist()
    ]


def without_vote(run: Run) -> dict[str, float]:
    """The scores that do not count since they disagree with the others, each with its agreement (`combine.py`)."""
    trials = recorded(score_study(run))
    return silent(score_names(run.recipe.search.score), score_matrix(run, trials, list(trials)))


def scores_of(run: Run, trial: optuna.trial.FrozenTrial) -> dict[str, float | None]:
    """Every score of a trial by name, None where undefined. Raises RunError if it was scored by others."""
    names = score_names(run.recipe.search.score)
    found: dict[str, float | None] = trial.user_attrs.get(SCORES, {})
    if set(found) != set(names):
        raise RunError(
            f"{run.folder} was scored by {', '.join(found) or 'an older version'}, the recipe asks for "
            f"{', '.join(names)}: give it another name, or move the old run away with --fresh"
        )
    return {name: found[name] for name in names}


def score_matrix(run: Run, trials: Mapping[Arch, optuna.trial.FrozenTrial], archs: Sequence[Arch]) -> FloatMatrix:
    """(n, k) scores, NaN where undefined."""
    rows = [list(scores_of(run, trials[arch]).values()) for arch in archs]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(score_names(run.recipe.search.score)))


class _Book:
    """The scores of a run in memory, and on disk as soon as they are known."""

    def __init__(self, run: Run, total: int) -> None:
        self._run, self._study, self._total = run, score_study(run), total
        self.names = score_names(run.recipe.search.score)
        trials = recorded(self._study)
        self._rows = dict(zip(trials, score_matrix(run, trials, list(trials)), strict=True))
        self._rows |= dict.fromkeys(failed(self._study), np.full(len(self.names), np.nan))
        self._progress()

    def __contains__(self, arch: Arch) -> bool:
        return arch in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def matrix(self, archs: Sequence[Arch]) -> FloatMatrix:
        """(n, k) scores, NaN where undefined."""
        return np.array([self._rows[arch] for arch in archs]).reshape(len(archs), len(self.names))

    def record(self, arch: Arch, results: Mapping[str, ScoreResult], trial: optuna.Trial | None = None) -> None:
        """Record an architecture's scores as a trial, the one of a sampler that asked for it or a new one."""
        values = {name: result.value for name, result in results.items()}
        reasons = {name: result.reason for name, result in results.items() if result.reason is not None}
        row = np.array(list(values.values()), dtype=np.float64)
        self._rows[arch] = row
        if np.isnan(row).all():
            reason = "; ".join(sorted(set(reasons.values())))
            record_failure(self._study, self._run.space, arch, reason, trial=trial)
        else:
            value = rank(self.names, np.array(list(self._rows.values())))[-1]
            latency = float(self._run.searched_ms(np.array([arch]))[0])
            facts: dict[str, Any] = {
                SCORES: values,
                REASONS: reasons,
                "seconds": {name: round(result.seconds, 4) for name, result in results.items()},
            }
            record_trial(self._study, self._run.space, arch, (value, latency), facts, trial=trial)
        self._progress()

    def _progress(self) -> None:
        self._run.progress(f"score networks ({', '.join(self.names)})", len(self._rows), self._total)
