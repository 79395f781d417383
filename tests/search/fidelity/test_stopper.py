from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pytest
from made_curves import ACCURACY, BOTH, LATENCY, training

from hwnas.errors import RecipeError
from hwnas.search.fidelity import STOPPERS, make_stopper, stopper_class, stopper_options
from hwnas.search.fidelity.stopper import Training, known_violations, one_hot, rivals, values_of
from hwnas.search.problem import Objective


@pytest.mark.parametrize("name", STOPPERS)
def test_every_rule_has_usable_defaults_and_is_frozen(name):
    stopper = make_stopper(name, {}, 30)
    assert stopper == make_stopper(name, stopper_options(name), 30)
    assert inspect.getmodule(stopper_class(name)).__name__.endswith(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stopper.max_epochs = 3


@pytest.mark.parametrize("name", STOPPERS)
def test_nothing_is_stopped_while_nothing_else_is_known(name):
    stopper = make_stopper(name, {}, 30)
    assert not stopper.decide(training(0, 1.0), [], BOTH).stop
    for epoch in range(1, 31):
        decision = stopper.decide(training(0, 1.0, *[10.0] * epoch), [], BOTH)
        assert not decision.stop
        assert decision.reason


@pytest.mark.parametrize("name", STOPPERS)
def test_a_value_that_was_not_measured_stops_nothing(name):
    stopper = make_stopper(name, {}, 30)
    others = [training(number, 1.0, *[90.0] * 30, finished=True) for number in range(1, 12)]
    for epoch in range(1, 30):
        assert not stopper.decide(training(0, 2.0, *[math.nan] * epoch), others, BOTH).stop


@pytest.mark.parametrize(
    ("name", "options", "epochs", "words"),
    [
        ("successiv_halving", {}, 30, "did you mean successive_halving"),
        ("median", {}, 30, "known: none, successive_halving, hyperband, curve_ranking"),
        ("successive_halving", {"etta": 3}, 30, "did you mean eta"),
        ("curve_ranking", {"zeal": 3}, 30, "its options: chance, min_epochs, interval, min_curves, spare"),
        ("none", {"eta": 3}, 30, "its options: none"),
        ("none", {}, 0, "max_epochs must be at least 1"),
        ("successive_halving", {"eta": 1}, 30, "eta must be a whole number of at least 2, got 1"),
        ("successive_halving", {"eta": 2.5}, 30, "eta must be a whole number"),
        ("successive_halving", {"eta": "3"}, 30, "eta must be a whole number"),
        ("successive_halving", {"min_epochs": 0}, 30, "min_epochs must be a whole number of at least 1"),
        ("successive_halving", {"min_epochs": True}, 30, "min_epochs must be a whole number"),
        ("successive_halving", {"min_epochs": 30}, 30, "min_epochs must be below the 30 epochs"),
        ("successive_halving", {"spread": "wide"}, 30, "spread must be one of"),
        ("successive_halving", {}, 1, "or the rule 'none'"),
        ("hyperband", {"min_epochs": 16}, 30, "at most max_epochs / eta, which is 15"),
        ("hyperband", {"eta": 40}, 30, "at most max_epochs / eta, which is 0, got 8"),
        ("curve_ranking", {"chance": 0}, 30, "chance must be between 0 and 1"),
        ("curve_ranking", {"chance": "0.1"}, 30, "chance must be between 0 and 1"),
        ("curve_ranking", {"chance": math.nan}, 30, "chance must be between 0 and 1"),
        ("curve_ranking", {"min_curves": 2}, 30, "min_curves must be a whole number of at least 3"),
        ("curve_ranking", {"interval": 0}, 30, "interval must be"),
        ("curve_ranking", {"spare": -1}, 30, "spare must be"),
        ("curve_ranking", {"min_epochs": 40}, 30, "below the 30 epochs"),
    ],
)
def test_what_cannot_be_used_is_refused(name, options, epochs, words):
    with pytest.raises(RecipeError, match=words):
        make_stopper(name, options, epochs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"number": -1, "known": {}}, "numbered from 0"),
        ({"number": 3, "known": {"latency": math.nan}}, "training 3: known values are finite numbers, latency is nan"),
        ({"number": 3, "known": {}, "finished": True}, "without a last value"),
        ({"number": 3, "known": {}, "curve": (1.0, math.nan), "finished": True}, "without a last value"),
    ],
)
def test_trainings_that_cannot_be(arguments, words):
    with pytest.raises(RecipeError, match=words):
        Training(**arguments)


def test_a_training_as_it_was():
    full = training(0, 1.0, 10.0, math.nan, 30.0, finished=True)
    assert full.until(1) == training(0, 1.0, 10.0)
    assert full.until(3) == full.until(9) == full
    assert (full.epochs, full.value_at(1), full.value_at(3)) == (3, 10.0, 30.0)
    assert all(math.isnan(full.value_at(epoch)) for epoch in (0, 2, 4))
    assert not training(0, 1.0, 10.0).until(1).finished


@pytest.mark.parametrize("name", ["successive_halving", "hyperband", "curve_ranking"])
@pytest.mark.parametrize(
    ("objectives", "known", "words"),
    [
        (BOTH, {}, "all but the learned one"),
        (BOTH, {"accuracy": 1.0, "latency": 2.0}, "all but the learned one"),
        (BOTH, {"speed": 1.0}, "all but the learned one"),
        ((), {}, "at least one objective"),
        ((ACCURACY, ACCURACY), {}, "a name of its own"),
    ],
)
def test_objectives_that_do_not_fit(name, objectives, known, words):
    stopper = make_stopper(name, {"min_epochs": 1}, 9)
    others = [training(number, 1.0, *[50.0] * 9, finished=True) for number in range(1, 40)]
    with pytest.raises(RecipeError, match=words):
        stopper.decide(Training(0, known, (5.0,)), others, objectives)


def test_the_others_must_have_the_same_curves():
    with pytest.raises(RecipeError, match="accuracy for training 0, another for training 1"):
        rivals(training(0, 1.0, 5.0), [Training(1, {"accuracy": 5.0}, (5.0,))], BOTH)


def test_the_training_itself_is_no_rival():
    one, two = training(1, 1.0, 5.0), training(0, 2.0)
    assert rivals(one, [one, two], BOTH) == [two]


def test_values_stand_where_their_objectives_do():
    trainings = [training(0, 1.0, 50.0), training(1, 2.0, 60.0)]
    learned = np.array([50.0, 60.0])
    assert values_of(trainings, learned, BOTH).tolist() == [[50, 1], [60, 2]]
    assert values_of(trainings, learned, (LATENCY, ACCURACY)).tolist() == [[1, 50], [2, 60]]
    assert values_of([], np.empty(0), BOTH).shape == (0, 2)


def test_only_known_objectives_break_limits_on_the_way():
    limited = (Objective("accuracy", "%", "maximize", 70.0), Objective("latency", "ms", "minimize", 4.0))
    assert known_violations(np.array([[50.0, 3.0], [80.0, 5.0]]), 0, limited).tolist() == [0.0, 0.25]


def test_one_hot_counts_every_option(toy):
    space = toy.ToySpace(stages=2, layers=2)
    archs = space.sample(20, np.random.default_rng(0)).tolist()
    for arch in archs:
        row = one_hot(space, tuple(arch))
        assert len(row) == space.cardinalities.sum()
        assert sum(row) == len(space.slots)
    assert len({one_hot(space, tuple(arch)) for arch in archs}) == len({space.check(arch) for arch in archs})
