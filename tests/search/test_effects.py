from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hwnas.search import effects as effects_module
from hwnas.search import inner
from hwnas.search.archive import Archive
from hwnas.search.effects import Effects
from hwnas.search.inner import nsga2
from hwnas.search.pareto import hypervolume, hypervolume_improvement, nondominated
from hwnas.search.problem import Objective, to_losses

ACCURACY = Objective("accuracy", "%", "maximize")
LATENCY = Objective("latency", "ms", "minimize")
OBJECTIVES = [ACCURACY, LATENCY]
UNBOUNDED = 10**9


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def additive(space):
    """(n, slots) -> (n, 2) values that are sums over the slots: what was measured anywhere holds everywhere."""
    worth = np.random.default_rng(1).uniform(-1, 1, size=(2, len(space.slots), int(space.cardinalities.max())))
    return lambda archs: worth[:, np.arange(archs.shape[1]), archs].sum(axis=2).T


class Flat:
    """The toy space with every layer always there."""

    def __new__(cls, toy, *sizes):
        space = toy.ToySpace(*sizes)
        space.canonical = lambda archs: archs
        return space


def start(space, evaluate, objectives, rng, n=30):
    archive = Archive(space, evaluate, objectives)
    found = archive.add(space.sample(n, rng), n)
    feasible = found.take(found.violation == 0)
    return archive, feasible.take(nondominated(feasible.losses))


def test_a_measurement_evaluates_every_neighbour_once_and_no_front_member_twice(toy, rng):
    space = Flat(toy, 4, 3)
    archive, good = start(space, additive(space), OBJECTIVES, rng)
    effects, before = Effects(archive), archive.evaluated
    neighbours = int((space.cardinalities - 1).sum())
    first = effects.measure(good, neighbours, UNBOUNDED, rng)
    assert len(effects) == len(first) == 1
    assert archive.evaluated - before == len(first[0]) <= neighbours
    assert all((good.archs != arch).sum(axis=1).min() <= 1 for arch in first[0].archs)
    effects.measure(good, UNBOUNDED, UNBOUNDED, rng)
    assert len(effects) == len(good)
    assert effects.spent == archive.evaluated - before
    assert effects.measure(good, UNBOUNDED, UNBOUNDED, rng) == []


def test_no_more_is_measured_than_the_allowance_and_the_end_permit(toy, rng):
    space = Flat(toy, 4, 3)
    archive, good = start(space, additive(space), OBJECTIVES, rng)
    effects = Effects(archive)
    assert effects.measure(good, int((space.cardinalities - 1).sum()) - 1, UNBOUNDED, rng) == []
    effects.measure(good, UNBOUNDED, archive.evaluated + 7, rng)
    assert archive.evaluated == 37


def test_children_of_additive_objectives_are_better_than_what_was_known(toy, rng):
    space = Flat(toy, 6, 3)
    evaluate = additive(space)
    archive, good = start(space, evaluate, OBJECTIVES, rng)
    effects = Effects(archive)
    effects.measure(good, UNBOUNDED, UNBOUNDED, rng)
    known, reference = archive.front().losses, good.losses.max(axis=0) + 1
    gains = hypervolume_improvement(to_losses(evaluate(effects.children(good, 400, rng)), OBJECTIVES), known, reference)
    random = hypervolume_improvement(to_losses(evaluate(space.sample(400, rng)), OBJECTIVES), known, reference)
    assert (gains > 0).mean() > 0.5 > 5 * (random > 0).mean()


def test_children_keep_the_limits_that_additive_objectives_foretell(toy, rng, monkeypatch):
    space = Flat(toy, 6, 3)
    evaluate = additive(space)
    limit = float(np.median(evaluate(space.sample(100, rng))[:, 1]))
    objectives = [ACCURACY, dataclasses.replace(LATENCY, limit=limit)]
    archive, good = start(space, evaluate, objectives, rng)
    effects = Effects(archive)
    effects.measure(good, UNBOUNDED, UNBOUNDED, rng)
    children = effects.children(good, 400, np.random.default_rng(5))
    assert evaluate(children)[:, 1].max() <= limit + 1e-9
    assert evaluate(children)[:, 1].max() > limit - 0.3  # and reach up to them
    effects._limits = [np.inf, np.inf]
    assert evaluate(effects.children(good, 400, np.random.default_rng(5)))[:, 1].max() > limit


def test_changes_without_a_finite_value_are_not_taken(toy, rng):
    space = Flat(toy, 4, 3)
    evaluate = additive(space)

    def holes(archs):
        values = evaluate(archs)
        values[archs[:, 1] == 2] = np.nan
        return values

    archive, good = start(space, holes, OBJECTIVES, rng)
    effects = Effects(archive)
    effects.measure(good, UNBOUNDED, UNBOUNDED, rng)
    assert (effects.children(good, 500, rng)[:, 1] != 2).all()


def test_old_measurements_make_room_for_new_ones(toy, rng, monkeypatch):
    monkeypatch.setattr(effects_module, "_REMEMBERED", 3)
    space = Flat(toy, 5, 3)
    archive, good = start(space, additive(space), OBJECTIVES, rng, n=200)
    assert len(good) > 3
    effects = Effects(archive)
    effects.measure(good, UNBOUNDED, UNBOUNDED, rng)
    assert len(effects) == 3
    assert effects.children(good, 50, rng).shape == (50, len(space.slots))


def test_losses_that_were_seen_are_remembered_and_others_are_not_a_number(toy, rng):
    space = toy.ToySpace(4, 3)
    evaluate = toy.ToyEvaluator(space)

    def holes(archs):
        values = evaluate(archs)
        values[archs[:, 0] == 1] = np.nan
        return values

    archive = Archive(space, holes, OBJECTIVES)
    archs = np.unique(space.sample(1500, rng), axis=0)
    for part in np.array_split(archs, 7):
        archive.add(part, len(part))
    expected = to_losses(holes(archs), OBJECTIVES)
    np.testing.assert_array_equal(archive.losses_of(archs), expected)
    assert np.isnan(expected).any()
    unseen = np.unique(space.sample(50, rng), axis=0)
    unseen = unseen[(unseen[:, None] != archs).any(axis=2).all(axis=1)]
    assert len(unseen)
    assert np.isnan(archive.losses_of(unseen)).all()


@pytest.mark.parametrize("limit", [None, 12.0])
def test_fronts_are_better_than_without_measured_effects(toy, monkeypatch, limit):
    space = toy.ToySpace(9, 4)
    objectives = [ACCURACY, dataclasses.replace(LATENCY, limit=limit)]

    def volumes():
        fronts = [
            nsga2(space, toy.ToyEvaluator(space), objectives, population=50, generations=40, seed=seed).values
            for seed in range(6)
        ]
        return [hypervolume(to_losses(values, objectives), np.array([-20.0, 25.0])) for values in fronts]

    with_effects = volumes()
    monkeypatch.setattr(inner, "_MEASURED", 0.0)
    assert min(with_effects) > max(volumes())  # of 12 volumes the 6 largest: by chance once in 924


def test_more_children_than_parents_in_long_runs_and_the_budget_is_kept(toy):
    space = toy.ToySpace(6, 4)
    evaluate = toy.ToyEvaluator(space)
    told = []
    nsga2(
        space,
        evaluate,
        OBJECTIVES,
        population=20,
        generations=1000,
        seed=0,
        progress=lambda done, total: told.append(done),
    )
    assert evaluate.count == told[-1] == 20_000
    assert len(told) < 300
