from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hwnas.errors import InfeasibleError, PredictorError, RecipeError, SpaceError
from hwnas.search import inner
from hwnas.search.archive import Candidates
from hwnas.search.inner import Front, nsga2, select_spread
from hwnas.search.pareto import hypervolume, nondominated
from hwnas.search.problem import Objective, to_losses
from hwnas.space import unique_archs

ACCURACY = Objective("accuracy", "%", "maximize")
LATENCY = Objective("latency", "ms", "minimize")
OBJECTIVES = [ACCURACY, LATENCY]


def volume(values, evaluate):
    """Hypervolume from the box that the smallest and the largest network span: both ends of the front count alike."""
    slots = evaluate.space.cardinalities
    (worst, _), (_, slowest) = evaluate(np.stack([np.zeros_like(slots), slots - 1]))
    return hypervolume(to_losses(values, OBJECTIVES), np.array([-worst, slowest]))


def limited(objective, limit):
    return dataclasses.replace(objective, limit=limit)


def true_front(toy, space, objectives=OBJECTIVES):
    archs = unique_archs(space.canonical(toy.everything(space)))
    values = toy.ToyEvaluator(space)(archs)
    mask = nondominated(to_losses(values, objectives))
    return {tuple(arch) for arch in archs[mask].tolist()}


def as_set(front):
    return {tuple(arch) for arch in front.archs.tolist()}


def test_a_front_is_what_it_says(toy):
    space = toy.ToySpace(stages=5, layers=4)
    evaluate = toy.ToyEvaluator(space)
    front = nsga2(space, evaluate, OBJECTIVES, population=40, generations=20, seed=0)
    assert len(front.archs) > 20
    np.testing.assert_array_equal(front.archs, space.canonical(front.archs))
    assert len(unique_archs(front.archs)) == len(front.archs)
    np.testing.assert_array_equal(front.values, evaluate(front.archs))
    assert nondominated(to_losses(front.values, OBJECTIVES)).all()
    assert (np.diff(front.values[:, -1]) >= 0).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        front.archs = front.archs[:1]


def test_the_front_is_of_everything_evaluated_not_of_the_last_population(toy):
    space = toy.ToySpace(stages=5, layers=4)
    evaluate = toy.ToyEvaluator(space)
    front = nsga2(space, evaluate, OBJECTIVES, population=12, generations=60, seed=1)
    asked = np.concatenate(evaluate.asked)
    mask = nondominated(to_losses(toy.ToyEvaluator(space)(asked), OBJECTIVES))
    assert as_set(front) == {tuple(arch) for arch in asked[mask].tolist()}
    assert len(front.archs) > 12


def test_no_architecture_is_evaluated_twice_and_the_budget_is_kept(toy):
    space = toy.ToySpace(stages=4, layers=3)
    evaluate = toy.ToyEvaluator(space)
    nsga2(space, evaluate, OBJECTIVES, population=50, generations=30, seed=3)
    asked = np.concatenate(evaluate.asked)
    assert len(asked) == 50 * 30
    assert len(unique_archs(asked)) == len(asked)
    np.testing.assert_array_equal(asked, space.canonical(asked))


def test_the_same_seed_gives_the_same_front_and_another_seed_another(toy):
    space = toy.ToySpace(stages=6, layers=4)

    def run(seed):
        return nsga2(space, toy.ToyEvaluator(space), OBJECTIVES, population=30, generations=10, seed=seed)

    first, again, other = run(7), run(7), run(8)
    np.testing.assert_array_equal(first.archs, again.archs)
    np.testing.assert_array_equal(first.values, again.values)
    assert as_set(first) != as_set(other)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 3)])
@pytest.mark.parametrize("population", [4, 100])
def test_a_small_space_is_solved_exactly(toy, sizes, population):
    space = toy.ToySpace(*sizes)
    evaluate = toy.ToyEvaluator(space)
    generations = -(-space.size // population)
    front = nsga2(space, evaluate, OBJECTIVES, population=population, generations=generations, seed=0)
    assert as_set(front) == true_front(toy, space)
    assert evaluate.count == len(unique_archs(space.canonical(toy.everything(space))))


def test_a_space_of_few_networks_behind_many_tuples_ends(toy):
    """More tuples than the budget, fewer networks: the run stops when nothing new turns up."""

    class Folded(toy.ToySpace):
        def canonical(self, archs):
            folded = np.zeros_like(archs)
            folded[:, :2] = archs[:, :2]
            return folded

    space = Folded(stages=3, layers=3)
    evaluate = toy.ToyEvaluator(space)
    front = nsga2(space, evaluate, OBJECTIVES, population=20, generations=50, seed=0)
    assert evaluate.count == 9
    assert 1 <= len(front.archs) <= 9


def test_most_of_a_true_front_is_found_in_a_fraction_of_the_space(toy):
    space = toy.ToySpace(stages=3, layers=3)
    truth = true_front(toy, space)
    budget = 60 * 40
    assert budget < 0.15 * len(unique_archs(space.canonical(toy.everything(space))))
    front = nsga2(space, toy.ToyEvaluator(space), OBJECTIVES, population=60, generations=40, seed=0)
    assert len(as_set(front) & truth) > 0.7 * len(truth)


def test_it_beats_random_search_at_equal_evaluations(toy):
    space = toy.ToySpace(stages=6, layers=4)
    wins = []
    for seed in range(8):
        evaluate = toy.ToyEvaluator(space)
        front = nsga2(space, evaluate, OBJECTIVES, population=50, generations=20, seed=seed)
        random = space.sample(evaluate.count, np.random.default_rng(seed))
        wins.append(volume(front.values, evaluate) > 1.05 * volume(evaluate(random), evaluate))
    assert all(wins)  # by chance alone once in 256


def test_the_evolution_itself_beats_random_search(toy, monkeypatch):
    """Without the descent to the ends of the front, which could win alone."""
    monkeypatch.setattr(inner, "_ENDS", 0.0)
    space = toy.ToySpace(stages=6, layers=4)
    for seed in range(8):
        evaluate = toy.ToyEvaluator(space)
        front = nsga2(space, evaluate, OBJECTIVES, population=50, generations=20, seed=seed)
        random = space.sample(evaluate.count, np.random.default_rng(seed))
        assert volume(front.values, evaluate) > volume(evaluate(random), evaluate)


def test_the_ends_of_the_front_are_reached(toy):
    space = toy.ToySpace(stages=9, layers=4)
    evaluate = toy.ToyEvaluator(space)
    front = nsga2(space, evaluate, OBJECTIVES, population=100, generations=20, seed=0)
    fastest = evaluate(np.zeros((1, len(space.slots)), dtype=np.int64))[0, 1]
    assert front.values[0, 1] == fastest
    assert front.values[-1, 0] == front.values[:, 0].max()


def test_the_front_is_well_spread(toy):
    space = toy.ToySpace(stages=6, layers=4)
    front = nsga2(space, toy.ToyEvaluator(space), OBJECTIVES, population=100, generations=40, seed=0)
    gaps = np.diff(front.values[:, 1]) / np.ptp(front.values[:, 1])
    assert gaps.max() < 0.1


def test_a_front_under_limits_keeps_them_and_fills_them(toy):
    space = toy.ToySpace(stages=5, layers=4)
    free = nsga2(space, toy.ToyEvaluator(space), OBJECTIVES, population=60, generations=40, seed=0)
    limit = float(np.quantile(free.values[:, 1], 0.3))
    front = nsga2(
        space, toy.ToyEvaluator(space), [ACCURACY, limited(LATENCY, limit)], population=60, generations=40, seed=0
    )
    assert front.values[:, 1].max() <= limit
    best_free = free.values[free.values[:, 1] <= limit, 0].max()
    assert front.values[:, 0].max() >= 0.99 * best_free


def test_a_limit_that_one_architecture_in_a_billion_keeps_is_found(toy):
    """Random sampling never sees it; the search has to push."""
    space = toy.ToySpace(stages=9, layers=4)
    fastest = float(toy.ToyEvaluator(space)(np.zeros((1, len(space.slots)), dtype=np.int64))[0, 1])
    objectives = [ACCURACY, limited(LATENCY, fastest * 1.001)]
    for population, generations in [(100, 20), (4, 2)]:
        front = nsga2(
            space, toy.ToyEvaluator(space), objectives, population=population, generations=generations, seed=0
        )
        assert front.values[:, 1].max() <= fastest * 1.001


def test_survival_is_constraint_domination():
    """Deb et al. 2002, definition 1. Row 0 is infeasible: that it dominates row 2 does not count."""
    losses = np.array([[0.5, 2.5], [3.0, 1.0], [1.0, 3.0], [4.0, 4.0], [9.0, 9.0], [2.9, 2.0], [0.0, 9.0]])
    violation = np.array([0.2, 0.0, 0.0, 0.0, 0.1, 0.0, 3.0])
    archs = np.arange(7)[:, None]
    ordered = inner._survivors(Candidates(archs, losses, violation), 7).archs[:, 0].tolist()
    assert set(ordered[:2]) == {1, 2}  # the ends of the first feasible front
    assert ordered[2:] == [5, 3, 4, 0, 6]  # its middle, the next front, then by violation
    assert inner._survivors(Candidates(archs, losses, violation), 3).archs[:, 0].tolist() == ordered[:3]


def test_constraint_domination_alone_walks_to_the_feasible_region(toy, monkeypatch):
    """No descent, neither at the start nor as a last resort: least violation first has to do it."""

    def must_not(archive):
        raise AssertionError("the evolution found nothing feasible")

    monkeypatch.setattr(inner, "_ENDS", 0.0)
    monkeypatch.setattr(inner, "push_to_limits", must_not)
    space = toy.ToySpace(stages=9, layers=4)
    evaluate = toy.ToyEvaluator(space)
    random = evaluate(space.sample(20_000, np.random.default_rng(5)))[:, 1]
    limit = float(random.min()) * 0.7
    for seed in range(3):
        front = nsga2(space, evaluate, [ACCURACY, limited(LATENCY, limit)], population=50, generations=60, seed=seed)
        assert front.values[:, 1].max() <= limit


def test_the_attainable_range_of_a_lone_objective_has_both_ends(toy):
    space = toy.ToySpace(stages=9, layers=4)
    evaluate = toy.ToyEvaluator(space)
    ends = evaluate(np.array([np.zeros(len(space.slots)), space.cardinalities - 1], dtype=np.int64))[:, 1]
    with pytest.raises(InfeasibleError, match=f"attainable is about {ends[0]:.4g} to {ends[1]:.4g} ms"):
        nsga2(space, lambda archs: evaluate(archs)[:, 1:], [limited(LATENCY, 0.1)], population=20, seed=0)


@pytest.mark.parametrize("population", [4, 50])
def test_an_unattainable_limit_says_what_is_attainable(toy, population):
    space = toy.ToySpace(stages=5, layers=4)
    corners = toy.ToyEvaluator(space)(np.array([np.zeros(len(space.slots)), space.cardinalities - 1], dtype=np.int64))
    with pytest.raises(InfeasibleError) as caught:
        nsga2(
            space,
            toy.ToyEvaluator(space),
            [limited(ACCURACY, 10.0), limited(LATENCY, 0.1)],
            population=population,
            generations=5,
            seed=0,
        )
    message = str(caught.value)
    fastest, slowest = corners[:, 1]
    assert message.startswith(
        f"latency: no architecture of toy found at or below 0.1 ms; "
        f"attainable is about {fastest:.4g} to {slowest:.4g} ms; raise the limit or widen the space"
    )
    assert "accuracy at or above 10 % (attainable is about " in message


def test_an_unattainable_lower_bound(toy):
    space = toy.ToySpace(stages=2, layers=2)
    with pytest.raises(InfeasibleError, match=r"accuracy: .* at or above 101 %; .*; lower the limit"):
        nsga2(space, toy.ToyEvaluator(space), [limited(ACCURACY, 101.0), LATENCY], seed=0)


def test_limits_that_exclude_each_other_are_told_apart_from_limits_out_of_reach(toy):
    space = toy.ToySpace(stages=4, layers=4)
    free = nsga2(space, toy.ToyEvaluator(space), OBJECTIVES, population=50, generations=30, seed=0)
    best, fastest = float(free.values[:, 0].max()), float(free.values[0, 1])
    with pytest.raises(InfeasibleError, match=r"keeps all limits together: accuracy .* latency .* the nearest has acc"):
        nsga2(
            space,
            toy.ToyEvaluator(space),
            [limited(ACCURACY, 0.99 * best), limited(LATENCY, 1.01 * fastest)],
            population=50,
            generations=30,
            seed=0,
        )


def test_three_objectives(toy):
    space = toy.ToySpace(stages=4, layers=3)
    evaluate = toy.ToyEvaluator(space)
    objectives = [ACCURACY, Objective("size", "MB", "minimize", limit=20.0), LATENCY]

    def three(archs):
        values = evaluate(archs)
        return np.column_stack([values[:, 0], archs.sum(axis=1) + 1.0, values[:, 1]])

    front = nsga2(space, three, objectives, population=40, generations=20, seed=0)
    assert nondominated(to_losses(front.values, objectives)).all()
    assert front.values[:, 1].max() <= 20
    assert len(front.archs) > 40


def test_one_objective_ends_in_its_best(toy):
    space = toy.ToySpace(stages=3, layers=2)
    evaluate = toy.ToyEvaluator(space)
    front = nsga2(space, lambda archs: evaluate(archs)[:, 1:], [LATENCY], population=20, generations=10, seed=0)
    np.testing.assert_array_equal(front.archs, np.zeros((1, len(space.slots))))


def test_values_that_are_not_finite_never_reach_the_front(toy):
    space = toy.ToySpace(stages=4, layers=3)
    evaluate = toy.ToyEvaluator(space)

    def broken(archs):
        values = evaluate(archs)
        values[archs[:, 0] == 0, 0] = np.nan
        values[archs[:, 0] == 1, 1] = -np.inf
        return values

    front = nsga2(space, broken, OBJECTIVES, population=30, generations=10, seed=0)
    assert np.isfinite(front.values).all()
    assert (front.archs[:, 0] == 2).all()


def test_no_finite_value_at_all_is_an_error_not_an_endless_run(toy):
    space = toy.ToySpace(stages=4, layers=3)
    with pytest.raises(PredictorError, match="not one of 200 architectures of toy has finite values"):
        nsga2(space, lambda archs: np.full((len(archs), 2), np.nan), OBJECTIVES, population=20, generations=10, seed=0)


def test_given_architectures_are_evaluated(toy):
    space = toy.ToySpace(stages=9, layers=4)
    evaluate = toy.ToyEvaluator(space)
    initial = np.stack([space.cardinalities - 1, np.tile([0, 2, 2, 2, 2], 9)])
    front = nsga2(space, evaluate, OBJECTIVES, population=10, generations=2, seed=0, initial=initial)
    np.testing.assert_array_equal(evaluate.asked[0], space.canonical(initial))
    assert tuple(space.cardinalities - 1) in as_set(front)


@pytest.mark.parametrize(
    ("initial", "message"), [([[0, 0]], "16 slots"), ([[9] + [0] * 15], "options 0..2"), ([0] * 16, "shape")]
)
def test_given_architectures_must_belong_to_the_space(toy, initial, message):
    space = toy.ToySpace(stages=4, layers=3)
    with pytest.raises(SpaceError, match=message):
        nsga2(space, toy.ToyEvaluator(space), OBJECTIVES, population=10, generations=2, seed=0, initial=initial)


def test_progress_ends_where_it_said(toy):
    space = toy.ToySpace(stages=4, layers=3)
    told = []
    nsga2(
        space,
        toy.ToyEvaluator(space),
        OBJECTIVES,
        population=20,
        generations=10,
        seed=0,
        progress=lambda done, total: told.append((done, total)),
    )
    done = [d for d, _ in told]
    assert {total for _, total in told} == {200}
    assert done == sorted(done)
    assert done[-1] == 200


def test_wrong_arguments(toy):
    space = toy.ToySpace(stages=4, layers=3)
    evaluate = toy.ToyEvaluator(space)
    with pytest.raises(RecipeError, match="population >= 4"):
        nsga2(space, evaluate, OBJECTIVES, population=3, seed=0)
    with pytest.raises(RecipeError, match="generations >= 1"):
        nsga2(space, evaluate, OBJECTIVES, generations=0, seed=0)
    with pytest.raises(RecipeError, match="at least one objective"):
        nsga2(space, evaluate, [], seed=0)
    with pytest.raises(PredictorError, match=r"must return \(100, 3\) values.*got shape \(100, 2\)"):
        nsga2(space, evaluate, [*OBJECTIVES, Objective("size", "MB", "minimize")], seed=0)


def test_spread_is_even_along_a_front_and_has_its_ends():
    t = np.linspace(0, 1, 101) ** 3  # crowded at one end
    values = np.column_stack([70 + 10 * t, 5 + 20 * t])
    chosen = select_spread(values, 5)
    assert chosen[[0, -1]].tolist() == [0, 100]
    np.testing.assert_allclose(t[chosen], [0, 0.25, 0.5, 0.75, 1], atol=0.02)


def test_spread_does_not_depend_on_units():
    angle = np.linspace(0, np.pi / 2, 91)
    circle = np.column_stack([np.sin(angle), 1 - np.cos(angle)])
    assert select_spread(circle, 4).tolist() == [0, 30, 60, 90]
    assert select_spread(circle * [1000, 1] + [5, 7], 4).tolist() == [0, 30, 60, 90]
    cube = np.random.default_rng(0).random((60, 3))
    np.testing.assert_array_equal(select_spread(cube * [1, 1000, 0.1], 9), select_spread(cube, 9))


def test_spread_of_a_shuffled_front_is_the_same():
    t = np.sort(np.random.default_rng(0).random(60))
    values = np.column_stack([t, t**2])
    order = np.random.default_rng(1).permutation(60)
    expected = sorted(values[select_spread(values, 7), 0].tolist())
    assert sorted(values[order][select_spread(values[order], 7), 0].tolist()) == expected


def test_spread_across_a_gap_and_copies_still_gives_k_different_rows():
    values = np.array([[0.0, 0.0]] * 5 + [[0.01, 0.01], [0.99, 0.99], [1.0, 1.0]])
    for k in range(2, 9):
        chosen = select_spread(values, k)
        assert len(set(chosen.tolist())) == k
        assert 7 in chosen
        assert (values[chosen] == 0).all(axis=1).any()


def test_spread_over_three_objectives_has_every_end():
    rng = np.random.default_rng(0)
    values = rng.random((200, 3))
    chosen = select_spread(values, 12)
    assert len(set(chosen.tolist())) == 12
    assert {*values.argmin(axis=0), *values.argmax(axis=0)} <= set(chosen.tolist())


def test_spread_of_few_rows_and_of_one():
    values = np.array([[1.0, 2.0], [2.0, 3.0], [9.0, 9.0]])
    assert select_spread(values, 3).tolist() == [0, 1, 2]
    assert select_spread(values, 10).tolist() == [0, 1, 2]
    assert select_spread(values, 1).tolist() == [1]
    assert select_spread(np.random.default_rng(0).random((9, 3)), 1).shape == (1,)
    assert select_spread(values[:0], 4).tolist() == []


@pytest.mark.parametrize(("values", "k"), [(np.zeros((3, 2)), 0), (np.zeros(3), 2), (np.array([[np.nan, 0.0]]), 1)])
def test_spread_refuses_nonsense(values, k):
    with pytest.raises(RecipeError, match="k >= 1"):
        select_spread(values, k)


def test_front_is_a_plain_record():
    assert [field.name for field in dataclasses.fields(Front)] == ["archs", "values"]
