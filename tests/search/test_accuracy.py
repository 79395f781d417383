from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest
import toy_space
from scipy.stats import kendalltau

from hwnas.errors import PredictorError, SpaceError
from hwnas.search import accuracy as module
from hwnas.search.accuracy import CANDIDATES, AccuracyPredictor
from hwnas.search.surrogate import ScoreModel
from hwnas.spaces import make_space

FAST = ("additive", "pairs", "smooth")


@pytest.fixture(scope="module")
def space():
    return toy_space.ToySpace(stages=3, layers=3)


@pytest.fixture(scope="module")
def truth(space):
    evaluator = toy_space.ToyEvaluator(space)

    def accuracy(archs, seed=0):
        return evaluator(archs)[:, 0] + np.random.default_rng(seed).normal(scale=0.5, size=len(archs))

    return accuracy


@pytest.fixture(scope="module")
def archs(space):
    return np.unique(space.sample(200, np.random.default_rng(0)), axis=0)


@pytest.fixture(scope="module")
def model(space, archs, truth):
    return AccuracyPredictor.fit(space, archs, truth(archs), candidates=FAST)


@pytest.fixture(scope="module")
def unseen(space):
    return space.sample(1500, np.random.default_rng(1))


def rmse(predicted, actual):
    return float(np.sqrt(((predicted - actual) ** 2).mean()))


def test_it_does_better_than_a_ridge_and_knows_how_well(space, archs, truth, model, unseen):
    actual = truth(unseen, 9)
    error = rmse(model.predict(unseen), actual)
    assert error < 0.8 * rmse(ScoreModel.fit(space, archs, truth(archs)).predict(unseen), actual)
    assert model.held_out.rmse == pytest.approx(error, rel=0.25)
    assert model.held_out.kendall == pytest.approx(kendalltau(model.predict(unseen), actual).statistic, abs=0.03)
    assert model.held_out.spearman > model.held_out.kendall


def test_the_fastest_candidate_that_is_not_clearly_worse(space, archs, model):
    assert [each.candidate for each in model.compared] == list(FAST)
    weights = np.random.default_rng(5).normal(size=archs.shape[1])
    noise = np.random.default_rng(6).normal(scale=0.3, size=len(archs))
    plain = AccuracyPredictor.fit(space, archs, 50 + archs @ weights + noise, candidates=FAST)
    assert plain.chosen == "additive"
    crossed = 50 + 3.0 * (archs[:, 1] == archs[:, 5]) + noise
    assert AccuracyPredictor.fit(space, archs, crossed, candidates=["pairs", "additive"]).chosen == "pairs"
    errors = {"slow and best": 1.00, "good": 1.02, "bad": 1.5}
    held_out = {name: np.full(4, error) for name, error in reversed(errors.items())}
    assert module._fastest_good(held_out, np.zeros(4)) == "good"


def test_intervals_hold_as_often_as_they_promise(truth, model, unseen):
    actual = truth(unseen, 9)
    widths = []
    for confidence, within in ((0.5, 0.12), (0.9, 0.06)):
        low, high = model.interval(unseen, confidence)
        assert (low < model.predict(unseen)).all()
        assert (model.predict(unseen) < high).all()
        assert ((low <= actual) & (actual <= high)).mean() == pytest.approx(confidence, abs=within)
        widths.append(np.median(high - low))
    assert widths[0] < 0.7 * widths[1]


@pytest.mark.parametrize(("confidence", "message"), [(0.999, "needs at least 999 networks"), (1.0, "between 0 and 1")])
def test_intervals_that_cannot_be_given(model, unseen, confidence, message):
    with pytest.raises(PredictorError, match=message):
        model.interval(unseen, confidence)


def test_neither_the_order_of_rows_nor_inactive_slots_matter(space, archs, truth, unseen):
    first = AccuracyPredictor.fit(space, archs, truth(archs), candidates=["additive"])
    noise = np.random.default_rng(9).integers(0, space.cardinalities, archs.shape)
    raw = np.where(
        space.canonical(np.where(archs == 0, noise, archs)) == archs, np.where(archs == 0, noise, archs), archs
    )
    assert (raw != archs).any()
    second = AccuracyPredictor.fit(space, raw[::-1], truth(archs)[::-1], candidates=["additive"])
    np.testing.assert_array_equal(first.predict(unseen), second.predict(unseen))
    np.testing.assert_array_equal(first.residuals, second.residuals)
    other = AccuracyPredictor.fit(space, archs, truth(archs), candidates=["additive"], seed=1)
    assert (other.residuals != first.residuals).any()


def test_a_network_evaluated_twice_is_one_with_the_mean(space, archs, truth, unseen):
    some, accuracy = archs[:40], truth(archs[:40])
    once = AccuracyPredictor.fit(space, some, accuracy, candidates=["additive"])
    apart = np.concatenate([accuracy - 0.25, accuracy + 0.25])
    twice = AccuracyPredictor.fit(space, np.concatenate([some, some]), apart, candidates=["additive"])
    assert len(twice.archs) == 40
    np.testing.assert_allclose(once.predict(unseen), twice.predict(unseen), atol=1e-4)


def test_a_resolution_that_was_never_seen():
    """The level of a number tells where it lies between those that were seen; the options alone do not."""
    space = make_space("mobilenetv3", {"resolutions": (128, 144, 176, 208, 224), "depths": (2, 3)})
    archs = space.sample(80, np.random.default_rng(0))

    def accuracy(archs):
        return 70 + 8 * np.log(np.array(space.slots[0].options)[archs[:, 0]] / 128) + 0.5 * archs[:, 3]

    kept = archs[:, 0] != 2
    model = AccuracyPredictor.fit(space, archs[kept], accuracy(archs[kept]), candidates=["additive"])
    assert rmse(model.predict(archs[~kept]), accuracy(archs[~kept])) < 0.3
    assert np.ptp(accuracy(archs)) > 4


def test_extra_features_count(space, archs, unseen):
    def hidden(archs):
        return np.sin(1e3 * (archs @ np.arange(1, archs.shape[1] + 1)))[:, None]

    accuracy = 70 + 5 * hidden(archs)[:, 0]
    without = AccuracyPredictor.fit(space, archs, accuracy, candidates=["additive"])
    with_extra = AccuracyPredictor.fit(space, archs, accuracy, extra=hidden, candidates=["additive"])
    assert with_extra.held_out.rmse < 0.2 * without.held_out.rmse
    assert rmse(with_extra.predict(unseen), 70 + 5 * hidden(unseen)[:, 0]) < 0.6


def test_few_networks_and_all_candidates(space, archs, truth, unseen):
    model = AccuracyPredictor.fit(space, archs[:10], truth(archs[:10]))
    assert [each.candidate for each in model.compared] == list(CANDIDATES)
    assert np.isfinite(model.predict(unseen)).all()
    with pytest.raises(PredictorError, match="9 different networks are too few"):
        AccuracyPredictor.fit(space, archs[[*range(9), 0]], np.full(10, 70.0))


def test_accuracies_that_are_all_the_same(space, archs, unseen):
    model = AccuracyPredictor.fit(space, archs[:40], np.full(40, 70.0), candidates=FAST)
    assert model.chosen == "additive"
    assert (model.held_out.kendall, model.held_out.spearman) == (0.0, 0.0)
    np.testing.assert_allclose(model.predict(unseen), 70.0, atol=1e-3)


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 100.5])
def test_accuracies_that_are_not_percent(space, archs, truth, wrong):
    accuracy = truth(archs)
    accuracy[3] = wrong
    with pytest.raises(PredictorError, match=r"percent from 0 to 100, row 3 has"):
        AccuracyPredictor.fit(space, archs, accuracy)


def test_arguments_that_do_not_fit(space, archs, truth, model):
    with pytest.raises(PredictorError, match="need as many accuracies"):
        AccuracyPredictor.fit(space, archs, truth(archs)[1:])
    with pytest.raises(PredictorError, match=r"candidates are some of additive, .* got \['forest'\]"):
        AccuracyPredictor.fit(space, archs, truth(archs), candidates=["forest"])
    with pytest.raises(SpaceError, match=r"options 0\.\.2"):
        model.predict(archs + 2)
    for wrong in (archs[0], archs[:, 1:], archs * 1.0):
        with pytest.raises(SpaceError, match="integer matrix"):
            model.predict(wrong)
    assert model.predict(archs[:0]).shape == (0,)


@pytest.mark.shared_data
def test_once_for_all_subnets_on_imagenet(shared_data):
    """Asked for are, of 1,000 subnets, 0.21 percent points and a tau of 0.90; a third of them does better."""
    with gzip.open(shared_data / "ofa" / "ofa_mbv3_w1.0_imagenet_top1.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    space = make_space("mobilenetv3", {"resolutions": (224,)})
    digits = {"d": (2, 3, 4), "ks": (3, 5, 7), "e": (3, 4, 6)}
    depths, kernels, expands = (
        np.array([[options.index(int(digit)) for digit in row[name]] for row in rows])
        for name, options in digits.items()
    )
    layers = np.stack([kernels, expands], axis=2).reshape(len(rows), 5, 8)
    stages = np.concatenate([depths[:, :, None], layers], axis=2).reshape(len(rows), -1)
    archs = space.canonical(np.concatenate([np.zeros((len(rows), 2), dtype=np.int64), stages], axis=1))
    top1 = np.array([float(row["top1"]) for row in rows])
    order = np.random.default_rng(3).permutation(len(rows))
    fit, other = order[:300], order[300:]
    model = AccuracyPredictor.fit(space, archs[fit], top1[fit], candidates=["pairs"])
    assert rmse(model.predict(archs[other]), top1[other]) < 0.09
    assert kendalltau(model.predict(archs[other]), top1[other]).statistic > 0.94
    low, high = model.interval(archs[other], 0.9)
    assert ((low <= top1[other]) & (top1[other] <= high)).mean() == pytest.approx(0.9, abs=0.06)
