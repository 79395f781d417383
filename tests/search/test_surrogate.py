from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from hwnas.errors import PredictorError
from hwnas.search import surrogate
from hwnas.search.surrogate import ScoreModel


@pytest.fixture
def space(toy):
    return toy.ToySpace(stages=3, layers=3)


@pytest.fixture
def archs(space):
    return space.sample(120, np.random.default_rng(0))


def additive(archs):
    weights = np.random.default_rng(5).normal(size=(archs.shape[1], 3))
    return 10 + weights[np.arange(archs.shape[1]), archs].sum(axis=1)


def test_an_additive_score_is_recovered(space, archs):
    model = ScoreModel.fit(space, archs, additive(archs))
    unseen = space.sample(500, np.random.default_rng(1))
    np.testing.assert_allclose(model.predict(unseen), additive(unseen), atol=0.02)
    assert model.cv_spearman > 0.99
    assert model.rows == 120
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.alpha = 1.0


def test_noise_is_not_trusted_and_not_ranked_in_reverse(space, archs):
    """Leave-one-out predictions of a model that has learnt nothing are the other rows' mean: rank correlation -1."""
    trusted = []
    for seed in range(10):
        scores = np.random.default_rng(100 + seed).normal(size=len(archs))
        trusted.append(ScoreModel.fit(space, archs, scores).cv_spearman)
    assert abs(np.mean(trusted)) < 0.12
    assert max(np.abs(trusted)) < 0.4


def test_cv_spearman_foretells_the_rank_correlation_on_unseen_architectures(space, archs):
    def noisy(archs, seed):
        return additive(archs) + np.random.default_rng(seed).normal(scale=3.0, size=len(archs))

    model = ScoreModel.fit(space, archs, noisy(archs, 2))
    unseen = space.sample(2000, np.random.default_rng(3))
    actual = spearmanr(model.predict(unseen), noisy(unseen, 4)).statistic
    assert 0.2 < actual < 0.9
    assert model.cv_spearman == pytest.approx(actual, abs=0.12)


def test_leave_one_out_in_closed_form_is_leaving_one_out(space, archs):
    """Against n refits by scikit-learn at the chosen alpha."""
    archs = archs[:40]
    scores = additive(archs) + np.random.default_rng(2).normal(size=40)
    model = ScoreModel.fit(space, archs, scores)
    design = (archs[:, :, None] == np.arange(3)).reshape(40, -1).astype(float)
    unit = np.abs(scores).max()
    centred = surrogate._ridge(design, scores / unit)[3] * unit
    for row in range(40):
        others = np.arange(40) != row
        ridge = Ridge(alpha=model.alpha).fit(design[others], scores[others])
        expected = ridge.predict(design[[row]])[0] - scores[others].mean()
        assert centred[row] == pytest.approx(expected, abs=1e-6)
    whole = Ridge(alpha=model.alpha).fit(design, scores)
    np.testing.assert_allclose(model.predict(archs), whole.predict(design), atol=1e-6)
    assert model.cv_spearman == pytest.approx(spearmanr(centred, scores).statistic)


def test_scores_that_are_not_finite_do_not_poison(space, archs):
    scores = additive(archs)
    broken = scores.copy()
    broken[[3, 50, 77]] = np.nan, np.inf, -np.inf
    model = ScoreModel.fit(space, archs, broken)
    assert model.rows == 117
    np.testing.assert_allclose(model.predict(archs), scores, atol=0.02)


@pytest.mark.parametrize("good", [0, 4])
def test_too_few_finite_scores(space, archs, good):
    scores = np.full(len(archs), np.nan)
    scores[:good] = 1.0
    with pytest.raises(PredictorError, match=rf"only {good} of 120 architectures .* at least 5"):
        ScoreModel.fit(space, archs, scores)


def test_inactive_slots_do_not_matter(space, archs):
    noise = np.random.default_rng(9).integers(0, space.cardinalities, archs.shape)
    raw = np.where(archs == 0, noise, archs)
    model = ScoreModel.fit(space, raw, additive(space.canonical(raw)))
    np.testing.assert_array_equal(model.predict(raw), model.predict(space.canonical(raw)))


def test_extra_features_explain_what_slots_cannot(space, archs):
    def product(archs):
        return ((archs[:, :1] + 1) * (archs[:, 4:5] + 1) * (archs[:, 8:9] + 1)) * 1e6

    scores = 3.0 * product(archs)[:, 0] + additive(archs)
    without = ScoreModel.fit(space, archs, scores)
    with_extra = ScoreModel.fit(space, archs, scores, extra=product)
    unseen = space.sample(300, np.random.default_rng(1))
    truth = 3.0 * product(unseen)[:, 0] + additive(unseen)
    assert np.abs(with_extra.predict(unseen) - truth).mean() < 0.01 * np.abs(without.predict(unseen) - truth).mean()
    assert with_extra.cv_spearman > without.cv_spearman


def test_extra_features_that_are_not_finite(space, archs):
    def broken(archs):
        return np.where(archs[:, :1] == 2, np.nan, 1.0 * archs[:, :1])

    model = ScoreModel.fit(space, archs, additive(archs), extra=broken)
    assert model.rows == (archs[:, 0] != 2).sum()
    assert np.isfinite(model.predict(archs[archs[:, 0] != 2])).all()
    with pytest.raises(PredictorError, match=r"extra features of architecture 2-.* not finite"):
        model.predict(archs)


@pytest.mark.parametrize("extra", [lambda archs: archs[:, 0] * 1.0, lambda archs: np.zeros((3, 2))])
def test_extra_features_of_a_wrong_shape(space, archs, extra):
    with pytest.raises(PredictorError, match=r"are \(n, features\)"):
        ScoreModel.fit(space, archs, additive(archs), extra=extra)


def test_scores_of_a_wrong_shape(space, archs):
    with pytest.raises(PredictorError, match="120 architectures need as many scores"):
        ScoreModel.fit(space, archs, np.zeros(7))


def test_constant_and_huge_scores(space, archs):
    constant = ScoreModel.fit(space, archs, np.full(len(archs), 3.0))
    np.testing.assert_allclose(constant.predict(archs), 3.0)
    assert constant.cv_spearman == 0.0
    huge = ScoreModel.fit(space, archs, additive(archs) * 1e300)
    assert huge.cv_spearman > 0.99
    assert np.isfinite(huge.predict(archs)).all()


def test_few_rows_and_many_slots(toy):
    space = toy.ToySpace(stages=9, layers=4)
    archs = space.sample(6, np.random.default_rng(0))
    model = ScoreModel.fit(space, archs, np.arange(6.0))
    assert np.isfinite(model.predict(archs)).all()
    assert -1 <= model.cv_spearman <= 1
