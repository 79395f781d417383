"""Several scores as one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as matrices

from hwnas.zeroshot import COMBINED
from hwnas.zeroshot.combine import COMPLEMENTS, LEAST_NETWORKS, agreements, combine, silent, silent_among_best

NAN = math.nan


def unnamed(scores):
    """The combined score of (n, k) values whose names are no complement's."""
    return combine(tuple("abcdefghij"[: scores.shape[1]]), scores)


def logs(ranks, n):
    return [math.log(rank / n) for rank in ranks]


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ([3.0, 1.0, 2.0], [3, 1, 2]),
        ([5.0], [1]),
        ([2.0, 2.0], [1.5, 1.5]),
        ([7.0, 1.0, 7.0, 9.0], [2.5, 1, 2.5, 4]),
        ([NAN, 4.0, -1e300], [1, 3, 2]),
        ([NAN, 4.0, NAN, 5.0], [1.5, 3, 1.5, 4]),
        ([NAN, NAN], [1.5, 1.5]),
        ([0.0, -0.0, 1e-300], [1.5, 1.5, 3]),
    ],
)
def test_one_score_is_the_logarithm_of_its_rank(values, ranks):
    assert unnamed(np.array(values)[:, None]) == pytest.approx(logs(ranks, len(values)))


def test_several_scores_by_hand():
    scores = [[1.0, 30.0], [2.0, 10.0], [3.0, 20.0]]  # ranks 1 3, 2 1, 3 2
    expected = [math.log(a * b / 9) / 2 for a, b in ((1, 3), (2, 1), (3, 2))]
    assert unnamed(np.array(scores)) == pytest.approx(expected)


def test_one_bad_rank_costs_more_than_one_good_rank_gives():
    balanced, extreme = [5.0, 5.0], [10.0, 0.0]
    others = [[float(i), float(i)] for i in (1, 2, 3, 4, 6, 7, 8, 9)]
    scores = unnamed(np.array([balanced, extreme, *others]))
    assert scores[0] > scores[1]
    assert scores[1] != scores.min()


def test_the_best_in_everything_has_0():
    scores = unnamed(np.array([[1.0, NAN, 3.0], [2.0, 5.0, 4.0], [0.0, 1.0, 2.0]]))
    assert scores[1] == 0
    assert (scores[[0, 2]] < 0).all()


def test_no_networks():
    assert unnamed(np.empty((0, 3))).shape == (0,)


def plain(scores):
    """Mean log rank of all, by another way: places in a sorted column."""
    ranks = 1 + np.argsort(np.argsort(scores, axis=0), axis=0)
    return np.log(ranks / len(scores)).mean(axis=1)


def opinions(n, *weights):
    """Scores of n networks: each a weight times the same truth, and noise."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(n)
    return np.stack([weight * truth + rng.standard_normal(n) for weight in weights], axis=1)


def test_what_disagrees_with_the_others_has_no_vote():
    scores = opinions(400, 3.0, 2.0, 3.0, 0.5, -2.0)
    assert agreements(scores)[4] < -0.3
    np.testing.assert_array_equal(unnamed(scores), unnamed(scores[:, :4]))
    assert silent("abcde", scores) == {"e": pytest.approx(agreements(scores)[4], abs=1e-3)}


def test_a_complement_is_not_judged_by_the_others():
    """Nor are they judged by it: what it is called, not what it says, decides who votes."""
    (name,) = COMPLEMENTS
    scores = opinions(400, 3.0, 2.0, 3.0, -2.0)
    assert list(silent(("a", "b", "c", name), scores)) == []
    np.testing.assert_array_equal(combine(("a", "b", "c", name), scores), plain(scores))
    scores = opinions(400, 3.0, 2.0, 3.0, -2.0, -3.0)
    assert list(silent(("a", "b", "c", "d", name), scores)) == ["d"]
    agreed = silent(("a", "b", "c", "d", name), scores)["d"]
    assert agreed == pytest.approx(agreements(scores[:, :4])[3], abs=1e-3)
    assert agreed != pytest.approx(agreements(scores)[3], abs=1e-2)
    np.testing.assert_array_equal(combine(("a", "b", "c", "d", name), scores), plain(scores[:, [0, 1, 2, 4]]))
    assert silent(("a", "b", name), opinions(400, 3.0, -2.0, 3.0)) == {}, "of two that are judged neither is wrong"


def test_a_complement_that_all_share_changes_no_place():
    (name,) = COMPLEMENTS
    scores = opinions(50, 3.0, 2.0, 3.0, -2.0)
    with_constant = combine(("a", "b", "c", "d", name), np.column_stack([scores, np.full(50, -16.0)]))
    assert np.argsort(with_constant).tolist() == np.argsort(unnamed(scores)).tolist()


def test_the_default_has_a_complement_and_enough_to_judge():
    assert set(COMBINED) > COMPLEMENTS
    assert len(set(COMBINED) - COMPLEMENTS) >= 3


def turned_among_the_best(n):
    """Scores a, b and c of a truth with little noise, and d, which is wrong about the order of the best third."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(n)
    turned = np.where(truth < np.quantile(truth, 2 / 3), truth, 5 - truth)
    return np.stack([*(truth + 0.1 * rng.standard_normal(n) for _ in "abc"), turned], axis=1)


def test_the_best_quarter_is_ranked_by_those_that_agree_in_it():
    scores = turned_among_the_best(80)
    assert silent("abcd", scores) == {}
    assert list(silent_among_best("abcd", scores)) == ["d"]
    of_all, found, by_few = plain(scores), combine("abcd", scores), plain(scores[:, :3])
    best = of_all >= np.sort(of_all)[60]
    np.testing.assert_array_equal(found[~best], of_all[~best])
    np.testing.assert_allclose(np.sort(found[best]), np.sort(of_all[best]))
    assert np.argsort(found[best]).tolist() == np.argsort(by_few[best]).tolist()
    assert np.argsort(found[best]).tolist() != np.argsort(of_all[best]).tolist()


def test_a_quarter_can_be_too_small_to_be_asked():
    for n in (4 * LEAST_NETWORKS - 4, 4 * LEAST_NETWORKS):
        scores = turned_among_the_best(n)
        assert bool(silent_among_best("abcd", scores)) == (n == 4 * LEAST_NETWORKS)
    np.testing.assert_allclose(combine("abcd", scores[:-4]), plain(scores[:-4]))


def test_equal_networks_are_equal_in_the_best_quarter():
    scores = np.repeat(turned_among_the_best(40), 3, axis=0)
    assert list(silent_among_best("abcd", scores)) == ["d"]
    found = combine("abcd", scores).reshape(40, 3)
    np.testing.assert_array_equal(found, found[:, :1].repeat(3, axis=1))
    assert len(np.unique(found[:, 0])) > 30
    np.testing.assert_allclose(combine("abcd", scores[::-1]), found.ravel()[::-1], rtol=1e-12)


def test_who_has_no_vote_is_not_asked_again():
    scores = turned_among_the_best(80)
    scores = np.column_stack([scores, -scores[:, 0]])
    assert list(silent("abcde", scores)) == ["e"]
    assert list(silent_among_best("abcde", scores)) == ["d"]
    np.testing.assert_array_equal(combine("abcde", scores), combine("abcd", scores[:, :4]))


def test_agreement_grows_with_accuracy():
    """Of independent errors the leading eigenvector orders predictors by how right they are."""
    found = agreements(opinions(2000, 0.5, 4.0, 1.0, 2.0))
    assert np.argsort(found).tolist() == [0, 2, 3, 1]
    assert np.linalg.norm(found) == pytest.approx(1)


def test_all_vote_where_agreement_cannot_be_told():
    scores = opinions(LEAST_NETWORKS, 3.0, 2.0, 3.0, -2.0)
    assert list(silent("abcd", scores)) == ["d"]
    assert silent("abcd", scores[:-1]) == {}
    assert silent("cd", scores[:, 2:]) == {}, "of two that disagree, neither is known to be wrong"


def test_a_constant_agrees_with_nothing():
    scores = np.column_stack([opinions(50, 3.0, 3.0), np.ones(50), np.full(50, NAN)])
    assert agreements(scores)[2:].tolist() == pytest.approx([0, 0])
    assert silent("abcd", scores) == {"c": 0, "d": 0}


def test_nothing_but_constants():
    assert unnamed(np.ones((20, 3))) == pytest.approx(np.full(20, math.log(10.5 / 20)))


NUMBERS = st.one_of(st.integers(-4, 4).map(float), st.just(NAN))
SCORES = st.tuples(st.integers(1, 8), st.integers(1, 4)).flatmap(lambda shape: matrices(float, shape, elements=NUMBERS))


@given(SCORES)
def test_only_the_order_matters(scores):
    combined = unnamed(scores)
    assert np.isfinite(combined).all()
    assert (combined <= 0).all()
    np.testing.assert_array_equal(unnamed(7 * scores - 100), combined)
    np.testing.assert_array_equal(unnamed(np.exp(scores)), combined)
    np.testing.assert_allclose(unnamed(scores[:, ::-1]), combined, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(unnamed(scores[::-1]), combined[::-1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(unnamed(np.concatenate([scores, scores], axis=1)), combined, rtol=1e-12, atol=1e-12)


@given(SCORES, st.data())
def test_better_in_one_score_is_never_worse(scores, data):
    row, column = (data.draw(st.integers(0, size - 1)) for size in scores.shape)
    better = scores.copy()
    better[row, column] = np.nan_to_num(better[row, column], nan=-9) + 2
    assert unnamed(better)[row] >= unnamed(scores)[row] - 1e-12
