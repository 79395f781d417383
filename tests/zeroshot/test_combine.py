"""Several scores as one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as matrices

from hwnas.zeroshot.combine import LEAST_NETWORKS, agreements, combine, silent, votes

NAN = math.nan


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
    assert combine(np.array(values)[:, None]) == pytest.approx(logs(ranks, len(values)))


def test_several_scores_by_hand():
    scores = [[1.0, 30.0], [2.0, 10.0], [3.0, 20.0]]  # ranks 1 3, 2 1, 3 2
    expected = [math.log(a * b / 9) / 2 for a, b in ((1, 3), (2, 1), (3, 2))]
    assert combine(np.array(scores)) == pytest.approx(expected)


def test_one_bad_rank_costs_more_than_one_good_rank_gives():
    balanced, extreme = [5.0, 5.0], [10.0, 0.0]
    others = [[float(i), float(i)] for i in (1, 2, 3, 4, 6, 7, 8, 9)]
    scores = combine(np.array([balanced, extreme, *others]))
    assert scores[0] > scores[1]
    assert scores[1] != scores.min()


def test_the_best_in_everything_has_0():
    scores = combine(np.array([[1.0, NAN, 3.0], [2.0, 5.0, 4.0], [0.0, 1.0, 2.0]]))
    assert scores[1] == 0
    assert (scores[[0, 2]] < 0).all()


def test_no_networks():
    assert combine(np.empty((0, 3))).shape == (0,)


def opinions(n, *weights):
    """Scores of n networks: each a weight times the same truth, and noise."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(n)
    return np.stack([weight * truth + rng.standard_normal(n) for weight in weights], axis=1)


def test_what_disagrees_with_the_others_has_no_vote():
    scores = opinions(400, 3.0, 2.0, 3.0, 0.5, -2.0)
    assert votes(scores).tolist() == [True, True, True, True, False]
    assert agreements(scores)[4] < -0.3
    np.testing.assert_array_equal(combine(scores), combine(scores[:, :4]))
    assert silent("abcde", scores) == {"e": pytest.approx(agreements(scores)[4], abs=1e-3)}


def test_agreement_grows_with_accuracy():
    """Of independent errors the leading eigenvector orders predictors by how right they are."""
    found = agreements(opinions(2000, 0.5, 4.0, 1.0, 2.0))
    assert np.argsort(found).tolist() == [0, 2, 3, 1]
    assert np.linalg.norm(found) == pytest.approx(1)


def test_all_vote_where_agreement_cannot_be_told():
    scores = opinions(LEAST_NETWORKS, 3.0, 2.0, 3.0, -2.0)
    assert votes(scores).tolist() == [True, True, True, False]
    assert votes(scores[:-1]).all()
    assert votes(scores[:, 2:]).all(), "of two that disagree, neither is known to be wrong"


def test_a_constant_agrees_with_nothing():
    scores = np.column_stack([opinions(50, 3.0, 3.0), np.ones(50), np.full(50, NAN)])
    assert agreements(scores)[2:].tolist() == pytest.approx([0, 0])
    assert votes(scores).tolist() == [True, True, False, False]


def test_nothing_but_constants():
    assert combine(np.ones((20, 3))) == pytest.approx(np.full(20, math.log(10.5 / 20)))


NUMBERS = st.one_of(st.integers(-4, 4).map(float), st.just(NAN))
SCORES = st.tuples(st.integers(1, 8), st.integers(1, 4)).flatmap(lambda shape: matrices(float, shape, elements=NUMBERS))


@given(SCORES)
def test_only_the_order_matters(scores):
    combined = combine(scores)
    assert np.isfinite(combined).all()
    assert (combined <= 0).all()
    np.testing.assert_array_equal(combine(7 * scores - 100), combined)
    np.testing.assert_array_equal(combine(np.exp(scores)), combined)
    np.testing.assert_allclose(combine(scores[:, ::-1]), combined, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(combine(scores[::-1]), combined[::-1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(combine(np.concatenate([scores, scores], axis=1)), combined, rtol=1e-12, atol=1e-12)


@given(SCORES, st.data())
def test_better_in_one_score_is_never_worse(scores, data):
    row, column = (data.draw(st.integers(0, size - 1)) for size in scores.shape)
    better = scores.copy()
    better[row, column] = np.nan_to_num(better[row, column], nan=-9) + 2
    assert combine(better)[row] >= combine(scores)[row] - 1e-12
