from __future__ import annotations

import json

import numpy as np
import pytest

from hwnas.errors import PredictorError
from hwnas.search.accuracy import AccuracyPredictor
from hwnas.search.accuracy_file import accuracy_from_json, accuracy_to_json
from hwnas.spaces import make_space


def first_two(archs):
    return archs[:, :2] * 1.0


def other(archs):
    return -archs[:, :2] * (1.0 + archs[:, 3:4])


@pytest.fixture(scope="module")
def space():
    return make_space("nasbench201", {"num_classes": 7})


@pytest.fixture(scope="module")
def fitted(space):
    archs = space.sample(60, np.random.default_rng(0))
    accuracy = 60 + 4 * np.sin(archs @ np.arange(1.0, 7.0)) + 3 * archs[:, 0]
    return AccuracyPredictor.fit(space, archs, accuracy, candidates=["smooth", "smooth and trees"], seed=4)


@pytest.fixture(scope="module")
def text(fitted):
    return accuracy_to_json(fitted)


def test_a_file_predicts_the_same_with_nothing_else_known(space, fitted, text):
    read = accuracy_from_json(text)
    asked = space.sample(300, np.random.default_rng(1))
    np.testing.assert_allclose(read.predict(asked), fitted.predict(asked), atol=1e-3)
    for bound, expected in zip(read.interval(asked), fitted.interval(asked), strict=True):
        np.testing.assert_allclose(bound, expected, atol=1e-3)
    assert (read.held_out, read.chosen, read.seed) == (fitted.held_out, fitted.chosen, 4)
    assert read.space.config == space.config
    again, first = json.loads(accuracy_to_json(read)), json.loads(text)
    assert {key: again[key] for key in again if key != "predicted"} == {
        key: first[key] for key in first if key != "predicted"
    }


def test_a_space_of_ones_own(toy):
    space = toy.ToySpace(stages=2, layers=2)
    archs = space.sample(60, np.random.default_rng(0))
    model = AccuracyPredictor.fit(space, archs, 50.0 + archs.sum(axis=1), candidates=["additive"])
    text = accuracy_to_json(model)
    read = accuracy_from_json(text, space=toy.ToySpace(stages=2, layers=2))
    np.testing.assert_allclose(read.predict(archs), model.predict(archs), atol=1e-3)
    with pytest.raises(PredictorError, match=r"is for the space toy with .*'widths': 3.*, not for this one"):
        accuracy_from_json(text, space=toy.ToySpace(stages=2, layers=2, widths=4))


def test_extra_features_must_come_along(space):
    archs = space.sample(60, np.random.default_rng(0))
    accuracy = 50.0 + 5 * archs[:, 0] - 4 * archs[:, 1]
    model = AccuracyPredictor.fit(space, archs, accuracy, extra=first_two, candidates=["additive"])
    text = accuracy_to_json(model)
    read = accuracy_from_json(text, extra=first_two)
    np.testing.assert_allclose(read.predict(archs), model.predict(archs), atol=1e-3)
    with pytest.raises(PredictorError, match=r"here\.acc needs the extra features"):
        accuracy_from_json(text, source="here.acc")
    with pytest.raises(PredictorError, match="other accuracies here than where it was saved"):
        accuracy_from_json(text, extra=other)


def test_extra_features_that_were_not_fitted(text):
    with pytest.raises(PredictorError, match="takes no extra features"):
        accuracy_from_json(text, extra=first_two)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "version"),
        ("best", "high", "best"),
        ("chosen", "forest", "do not belong together"),
        ("accuracy", [70.0], "do not belong together"),
        ("predicted", [3.0] * 20, "other accuracies here"),
    ],
)
def test_files_that_cannot_be_used(text, key, value, message):
    broken = json.loads(text) | {key: value}
    with pytest.raises(PredictorError, match=message):
        accuracy_from_json(json.dumps(broken))
    with pytest.raises(PredictorError, match="whole text"):
        accuracy_from_json(text[:-20])
