"""Against definitions written out by brute force, and Optuna's hypervolume."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from optuna._hypervolume import compute_hypervolume

from hwnas.search import pareto
from hwnas.search.pareto import (
    crowding_distance,
    hypervolume,
    hypervolume_improvement,
    nondominated,
    nondominated_ranks,
)


def dominates(a, b):
    return bool((a <= b).all() and (a < b).any())


def brute_nondominated(losses):
    return [not np.isnan(row).any() and not any(dominates(other, row) for other in losses) for row in losses]


def brute_ranks(losses):
    ranks = np.full(len(losses), -1)
    left = [i for i in range(len(losses)) if not np.isnan(losses[i]).any()]
    rank = 0
    while left:
        front = [i for i in left if not any(dominates(losses[j], losses[i]) for j in left)]
        ranks[front] = rank
        left = [i for i in left if i not in front]
        rank += 1
    ranks[ranks == -1] = rank
    return ranks


def grid_volume(losses, reference):
    """Cells of the grid spanned by all coordinates, each counted if some row is below it."""
    axes = [
        np.unique(np.append(losses[:, j][losses[:, j] < reference[j]], reference[j])) for j in range(len(reference))
    ]
    total = 0.0
    for cell in itertools.product(*(range(len(axis) - 1) for axis in axes)):
        corner = np.array([axis[i] for axis, i in zip(axes, cell, strict=True)])
        if (losses <= corner).all(axis=1).any():
            total += np.prod([axis[i + 1] - axis[i] for axis, i in zip(axes, cell, strict=True)])
    return total


def matrices(m, elements, rows=30):
    return hnp.arrays(np.float64, st.tuples(st.integers(0, rows), m), elements=elements)


few_values = st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.0, np.nan, np.inf])  # many ties, copies and holes
any_values = st.floats(-1e6, 1e6)


@given(matrices(st.integers(1, 4), few_values | any_values))
def test_nondominated_is_the_definition(losses):
    assert nondominated(losses).tolist() == brute_nondominated(losses)


@given(matrices(st.integers(1, 4), few_values | any_values))
def test_ranks_are_the_definition(losses):
    assert nondominated_ranks(losses).tolist() == brute_ranks(losses).tolist()


@given(matrices(st.integers(1, 4), st.integers(-4, 1).map(float), rows=7))
def test_hypervolume_counts_the_cells(losses):
    reference = np.zeros(losses.shape[1])
    assert hypervolume(losses, reference) == pytest.approx(grid_volume(losses, reference), abs=1e-9)


@given(matrices(st.integers(2, 4), st.floats(0, 1), rows=25))
@settings(deadline=None)
def test_hypervolume_agrees_with_optuna(losses):
    reference = np.ones(losses.shape[1])
    expected = compute_hypervolume(losses, reference) if len(losses) else 0.0
    assert hypervolume(losses, reference) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_many_rows_and_blocks_agree_with_small_ones():
    rng = np.random.default_rng(0)
    losses = np.concatenate([np.round(rng.normal(size=(1500, 3)), 1)] * 2)
    mask = nondominated(losses)
    np.testing.assert_array_equal(mask[:1500], mask[1500:])
    front = losses[mask]
    assert not any(dominates(other, row) for row in front for other in front)
    assert all(any(dominates(row, other) for row in front) for other in losses[~mask])


def test_a_hundred_thousand_points_finish():
    """No n^2 anywhere: the matrix of all pairs would need 10 GB."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi / 2, 100_000)
    circle = np.column_stack([1 - np.cos(angle), 1 - np.sin(angle)])
    assert nondominated(circle).all()
    assert hypervolume(circle, np.ones(2)) == pytest.approx(np.pi / 4, rel=1e-3)
    assert nondominated_ranks(rng.normal(size=(100_000, 2))).max() > 100
    sphere = np.abs(rng.normal(size=(20_000, 3)))
    sphere = 1 - sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    assert hypervolume(sphere, np.ones(3)) == pytest.approx(np.pi / 6, rel=1e-2)


def test_a_hundred_thousand_points_of_three_objectives_finish():
    """The front of a sphere is all of it: 5e9 pairs, which a sweep does not compare."""
    rng = np.random.default_rng(0)
    sphere = np.abs(rng.normal(size=(100_000, 3)))
    sphere = 1 - sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    assert nondominated(sphere).all()
    behind = sphere[:50_000] + 0.5
    assert nondominated_ranks(np.concatenate([sphere, behind]))[-50_000:].min() >= 1
    assert hypervolume(sphere, np.ones(3)) == pytest.approx(np.pi / 6, rel=4e-3)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_ranks_of_many_rows_are_fronts_of_what_is_left(m):
    losses = np.round(np.random.default_rng(m).normal(size=(800, m)), 1)
    ranks = nondominated_ranks(losses)
    for rank in range(ranks.max() + 1):
        left = ranks >= rank
        np.testing.assert_array_equal(nondominated(losses[left]), ranks[left] == rank)


@given(st.integers(1, 4).flatmap(lambda m: st.tuples(*(matrices(st.just(m), few_values, rows) for rows in (12, 8)))))
def test_improvement_is_the_difference_of_two_hypervolumes(both):
    candidates, front = both
    reference = np.full(front.shape[1], 2.5)
    before = hypervolume(front, reference)
    expected = [hypervolume(np.vstack([front, row]), reference) - before for row in candidates]
    np.testing.assert_allclose(hypervolume_improvement(candidates, front, reference), expected, rtol=0, atol=1e-9)


def test_improvement_over_two_objectives_in_parts_and_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    candidates, front, reference = rng.normal(size=(20_000, 2)), rng.normal(size=(40, 2)), np.ones(2)
    together = hypervolume_improvement(candidates, front, reference)
    before = compute_hypervolume(front[(front < 1).all(axis=1)], reference)
    for row in np.flatnonzero(candidates.max(axis=1) < 1)[:50]:
        points = np.vstack([front[(front < 1).all(axis=1)], candidates[row]])
        assert together[row] == pytest.approx(compute_hypervolume(points, reference) - before, abs=1e-12)
    monkeypatch.setattr(pareto, "_CELLS", 1000)
    np.testing.assert_array_equal(hypervolume_improvement(candidates, front, reference), together)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_improvement_over_nothing_is_the_box(m):
    candidates = np.array([[0.5] * m, [1.0] * m, [np.nan] * m])
    np.testing.assert_allclose(
        hypervolume_improvement(candidates, np.empty((0, m)), np.ones(m)), [0.5**m, 0, 0], atol=1e-15
    )
    assert hypervolume_improvement(candidates[:0], candidates, np.ones(m)).shape == (0,)


@pytest.mark.parametrize(
    ("candidates", "front", "reference"),
    [
        (np.zeros((1, 3)), np.zeros((1, 2)), np.ones(2)),
        (np.zeros((1, 2)), np.zeros((1, 2)), np.array([1.0, np.nan])),
        (np.array([[0.0, -np.inf]]), np.zeros((1, 2)), np.ones(2)),
        (np.zeros((1, 2)), np.array([[0.0, -np.inf]]), np.ones(2)),
    ],
)
def test_improvement_refuses_what_has_none(candidates, front, reference):
    with pytest.raises(ValueError, match=r"reference|hypervolume|do not fit"):
        hypervolume_improvement(candidates, front, reference)


def test_copies_are_kept_and_nan_is_dropped():
    losses = np.array([[1.0, 2.0], [1.0, 2.0], [np.nan, 0.0], [2.0, 2.0], [2.0, 1.0], [np.nan, np.nan]])
    assert nondominated(losses).tolist() == [True, True, False, False, True, False]
    assert nondominated_ranks(losses).tolist() == [0, 0, 2, 1, 0, 2]
    assert hypervolume(losses, np.array([3.0, 3.0])) == 3.0


def test_a_row_beyond_the_reference_adds_nothing():
    losses = np.array([[0.5, 0.5], [0.1, 1.0], [0.0, 7.0]])
    assert hypervolume(losses, np.ones(2)) == 0.25


@pytest.mark.parametrize(
    ("losses", "reference"),
    [
        (np.zeros((2, 2)), np.ones(3)),
        (np.zeros((2, 2)), np.array([1.0, np.inf])),
        (np.array([[0.0, -np.inf]]), np.ones(2)),
        (np.zeros(3), np.ones(3)),
    ],
)
def test_hypervolume_refuses_what_has_none(losses, reference):
    with pytest.raises(ValueError, match=r"reference|hypervolume|objectives"):
        hypervolume(losses, reference)


def test_crowding_prefers_the_lonely_and_the_ends():
    losses = np.array([[0.0, 10.0], [1.0, 9.0], [2.0, 8.0], [9.0, 1.0], [10.0, 0.0]])
    np.testing.assert_allclose(crowding_distance(losses), [np.inf, 0.4, 1.6, 1.6, np.inf])


def test_crowding_within_ranks_is_crowding_of_each_rank():
    losses = np.random.default_rng(3).normal(size=(60, 3))
    ranks = nondominated_ranks(losses)
    together = crowding_distance(losses, ranks)
    for rank in range(ranks.max() + 1):
        np.testing.assert_allclose(together[ranks == rank], crowding_distance(losses[ranks == rank]))


def test_crowding_of_nothing_and_of_copies():
    assert crowding_distance(np.zeros((0, 2))).shape == (0,)
    assert np.isfinite(crowding_distance(np.zeros((5, 2)))).sum() == 3
