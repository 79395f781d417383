from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from hwnas.search.fidelity.pairwise import PairwiseModel, normal_scores


def drawn(n, noise, seed):
    """Features of which the second is noise, and final scores that follow the first."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 2))
    finals = features[:, 0] + noise * rng.normal(size=n)
    return features, normal_scores(finals, finals)


def test_chances_follow_what_matters():
    features, finals = drawn(40, 0.3, 0)
    model = PairwiseModel.fit(features, finals, np.ones(2))
    chances = [model.chance(np.array([x, 0.0]), 0.0) for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    assert chances == sorted(chances)
    assert chances[0] < 0.05
    assert chances[-1] > 0.95
    assert model.chance(np.array([1.0, 0.0]), 2.0) < model.chance(np.array([1.0, 0.0]), 0.0)
    assert abs(model.weights[1]) < 0.3 * model.weights[0]


def test_few_curves_are_trusted_less_than_many():
    candidate = np.array([-1.5, 0.0])
    few, many = (
        np.mean([PairwiseModel.fit(*drawn(n, 0.3, seed), np.ones(2)).chance(candidate, 1.0) for seed in range(30)])
        for n in (4, 40)
    )
    assert many < few < 0.5


def test_features_that_say_nothing_leave_the_frequency():
    """Chances of independent noise come out as often as they say, averaged over many histories."""
    chances, ended = [], []
    for seed in range(200):
        features, finals = drawn(13, 1e3, seed)
        model = PairwiseModel.fit(features[:-1], finals[:-1], np.ones(2))
        chances.append(model.chance(features[-1], float(np.median(finals[:-1]))))
        ended.append(finals[-1] > np.median(finals[:-1]))
    assert abs(np.mean(chances) - np.mean(ended)) < 0.1
    assert np.quantile(chances, 0.05) > 0.1


def test_chances_are_calibrated_where_the_model_holds():
    """Of candidates with a chance of about p, about p end better."""
    chances, ended = [], []
    for seed in range(300):
        features, finals = drawn(25, 0.7, seed)
        model = PairwiseModel.fit(features[:-1], finals[:-1], np.ones(2))
        to_beat = float(np.quantile(finals[:-1], 0.75))
        chances.append(model.chance(features[-1], to_beat))
        ended.append(finals[-1] > to_beat)
    chances, ended = np.array(chances), np.array(ended)
    for low, high in ((0.0, 0.1), (0.1, 0.4), (0.4, 0.9)):
        rows = (chances >= low) & (chances < high)
        assert rows.sum() > 20
        assert abs(ended[rows].mean() - chances[rows].mean()) < 0.12


def test_ties_and_constants_are_no_trouble():
    model = PairwiseModel.fit(np.zeros((5, 3)), normal_scores(np.ones(5), np.ones(5)), np.ones(3))
    assert model.chance(np.zeros(3), 0.0) == pytest.approx(0.5, abs=0.01)
    perfect = np.linspace(-1, 1, 50)[:, None]
    assert 0 <= PairwiseModel.fit(perfect, perfect[:, 0], np.ones(1)).chance(np.array([-9.0]), 3.0) < 1e-3


def test_scores_are_quantiles_of_ranks():
    values = np.array([30.0, 10.0, 20.0, 20.0])
    np.testing.assert_allclose(normal_scores(values, values), norm.ppf([3.5 / 4, 0.5 / 4, 0.5, 0.5]))
    np.testing.assert_allclose(normal_scores(np.array([0.0, 99.0]), values), norm.ppf([1 / 16, 15 / 16]))


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20))
def test_scores_keep_the_order_and_are_finite(values):
    values = np.array(values, dtype=np.float64)
    scores = normal_scores(values, values)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(np.sign(scores[:, None] - scores), np.sign(values[:, None] - values))
