"""Surrogate-assisted search: better fronts than random, within the limit, and the same path when repeated."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from hwnas.errors import InfeasibleError
from hwnas.search.assisted import assisted_search
from hwnas.search.known import Known
from hwnas.search.pareto import hypervolume
from hwnas.search.problem import Objective, to_losses
from hwnas.space import Arch, IntMatrix, rows_of

SCORE = Objective("score", "", "maximize")


def problem(toy: ModuleType, limit: float | None = None):
    space = toy.ToySpace()
    truth = toy.ToyEvaluator(space)
    objectives = (SCORE, Objective("latency", "ms", "minimize", limit))

    def score(archs: IntMatrix) -> np.ndarray:
        return truth(archs)[:, :1]

    def latency(archs: IntMatrix) -> np.ndarray:
        return truth(archs)[:, 1]

    return space, truth, objectives, score, latency


def known_of(space, latency, objectives) -> Known:
    return Known(space, objectives, {"latency": latency})


def test_beats_random_search_at_equal_evaluations(toy: ModuleType) -> None:
    space, truth, objectives, score, latency = problem(toy)
    everything = truth(space.sample(4000, np.random.default_rng(0)))
    worst = to_losses(everything, objectives).max(axis=0)
    wins = 0
    for seed in range(6):
        found = assisted_search(known_of(space, latency, objectives), score, evaluations=40, seed=seed)
        at_random = known_of(space, latency, objectives).sample(len(found), np.random.default_rng(seed))
        ours, theirs = (hypervolume(to_losses(truth(archs), objectives), worst) for archs in (found, at_random))
        wins += ours > theirs
    assert wins >= 5


def test_scores_distinct_architectures_within_the_limit_and_the_budget(toy: ModuleType) -> None:
    space, truth, _, score, latency = problem(toy)
    limit = float(np.quantile(truth(space.sample(500, np.random.default_rng(0)))[:, 1], 0.3))
    bounded = (SCORE, Objective("latency", "ms", "minimize", limit))
    found = assisted_search(known_of(space, latency, bounded), score, evaluations=30, seed=1)
    assert len(found) == 30
    assert len({tuple(row) for row in found}) == 30
    assert (latency(found) <= limit).all()


def test_a_run_that_was_cut_off_takes_the_same_path(toy: ModuleType) -> None:
    space, _, objectives, score, latency = problem(toy)
    known: dict[Arch, np.ndarray] = {}
    cuts = {7, 23, 35}

    class Cut(Exception):
        pass

    def remembered(archs: IntMatrix) -> np.ndarray:
        for arch in rows_of(archs):
            if arch not in known:
                if len(known) in cuts:
                    cuts.remove(len(known))
                    raise Cut
                known[arch] = score(np.array([arch]))[0]
        return np.array([known[arch] for arch in rows_of(archs)])

    whole = assisted_search(known_of(space, latency, objectives), score, evaluations=40, seed=3)
    while cuts:
        with pytest.raises(Cut):
            assisted_search(known_of(space, latency, objectives), remembered, evaluations=40, seed=3)
    resumed = assisted_search(known_of(space, latency, objectives), remembered, evaluations=40, seed=3)
    np.testing.assert_array_equal(resumed, whole)
    assert len(known) == 40


def test_undefined_scores_do_not_stop_the_search(toy: ModuleType) -> None:
    space, _, objectives, score, latency = problem(toy)

    def undefined(archs: IntMatrix) -> np.ndarray:
        return np.where(archs[:, :1] == 0, np.nan, score(archs))

    found = assisted_search(known_of(space, latency, objectives), undefined, evaluations=40, seed=0)
    assert len(found) == 40


def test_several_scores_are_ranked_among_all_that_were_scored(toy: ModuleType) -> None:
    space, _, objectives, score, latency = problem(toy)
    ranked: list[int] = []

    def two(archs: IntMatrix) -> np.ndarray:
        return np.concatenate([-score(archs), 1000 + score(archs)], axis=1)

    def by_the_second(scores: np.ndarray) -> np.ndarray:
        ranked.append(len(scores))
        return scores[:, 1] - 1000

    alone = assisted_search(known_of(space, latency, objectives), score, evaluations=40, seed=2)
    found = assisted_search(known_of(space, latency, objectives), two, evaluations=40, seed=2, rank=by_the_second)
    np.testing.assert_array_equal(found, alone)
    assert ranked == [20, 25, 30, 35]


def test_a_limit_that_few_keep_is_reached_and_one_that_none_keeps_is_explained(toy: ModuleType) -> None:
    space, _, _, score, latency = problem(toy)
    fastest = latency(np.zeros((1, len(space.slots)), dtype=np.int64))[0]
    everything = latency(space.sample(4000, np.random.default_rng(0)))
    tight = Objective("latency", "ms", "minimize", float(np.quantile(everything, 0.002)))
    assert (latency(known_of(space, latency, (SCORE, tight)).sample(10, np.random.default_rng(0))) <= tight.limit).all()
    impossible = (SCORE, Objective("latency", "ms", "minimize", float(fastest) * 0.5))
    with pytest.raises(InfeasibleError, match=r"attainable"):
        assisted_search(known_of(space, latency, impossible), score, evaluations=20, seed=0)
