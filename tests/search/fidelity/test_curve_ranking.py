from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_curves import ACCURACY, BOTH, LATENCY, crossing, saturating, training

from hwnas.errors import RecipeError
from hwnas.search.fidelity.curve_ranking import CurveRanking, curve_values
from hwnas.search.fidelity.replay import on_front, replay
from hwnas.search.fidelity.stopper import Decision, Training
from hwnas.search.pareto import hypervolume
from hwnas.search.problem import Objective

EPOCHS = 16
RULE = CurveRanking(max_epochs=EPOCHS)


class LatestValue:
    """What is mostly done: stop what is below a finished network, at most as slow, after the same epoch."""

    def __init__(self, *, max_epochs=EPOCHS):
        pass

    def decide(self, one, others, objectives):
        faster = [other for other in others if other.finished and other.known["latency"] <= one.known["latency"]]
        return Decision(one.epochs > 1 and any(other.value_at(one.epochs) > one.curve[-1] for other in faster), "")


@pytest.fixture(scope="module")
def history():
    return saturating(20, EPOCHS, seed=0)


def hopeless(history, number=50, epochs=6):
    """A training that is slow, and below all others."""
    return training(number, 9.0, *np.linspace(1.0, 2.0, epochs).tolist())


def test_what_is_hopeless_is_stopped_and_what_is_ahead_is_not(history):
    decision = RULE.decide(hopeless(history), history, BOTH)
    assert decision.stop
    best = max(history, key=lambda one: one.curve[-1])
    assert f"to end better than training {best.number}; stopped below 0.1" in decision.reason
    assert not RULE.decide(training(50, 9.0, *[90.0] * 6), history, BOTH).stop


def test_what_could_still_enter_the_front_goes_on(history):
    """Nothing that has finished is as fast: however low it is, it will be on the front."""
    decision = RULE.decide(replace(hopeless(history), known={"latency": 0.5}), history, BOTH)
    assert decision == Decision(False, "epoch 6: nothing finished is as good in what is known before training")


def test_it_competes_with_the_best_of_those_at_most_as_slow(history):
    one = replace(hopeless(history), known={"latency": 3.0})
    best = max((o for o in history if o.known["latency"] <= 3.0), key=lambda other: other.curve[-1])
    assert f"better than training {best.number};" in RULE.decide(one, history, BOTH).reason
    # with accuracy alone, with the best of all
    bare = [replace(other, known={}) for other in history]
    best = max(history, key=lambda other: other.curve[-1])
    assert f"better than training {best.number};" in RULE.decide(replace(one, known={}), bare, (ACCURACY,)).reason


def test_the_decision_is_a_function_of_its_arguments(history):
    trainings = [one.until(6) for one in saturating(12, EPOCHS, seed=5)]
    trainings = [replace(one, number=100 + one.number) for one in trainings]
    decisions = [RULE.decide(one, history, BOTH) for one in trainings]
    assert {decision.stop for decision in decisions} == {True, False}
    assert [RULE.decide(one, [*reversed(history), one], BOTH) for one in trainings] == decisions
    losses = (replace(ACCURACY, direction="minimize"), LATENCY)
    mirrored = [replace(one, curve=tuple(-value for value in one.curve)) for one in [*history, *trainings]]
    again = [RULE.decide(one, mirrored[: len(history)], losses) for one in mirrored[len(history) :]]
    assert [one.stop for one in again] == [one.stop for one in decisions]


def test_running_and_stopped_trainings_are_seen_but_are_no_rivals(history):
    one = hopeless(history)
    running = [training(60 + n, 1.0, *[99.0] * 8) for n in range(3)]
    before, after = (RULE.decide(one, [*history, *others], BOTH) for others in ([], running))
    assert before.stop
    assert after.stop
    assert "better than training 6" not in after.reason
    assert not RULE.decide(one, [*running, *(other.until(8) for other in history)], BOTH).stop, "nothing has finished"


@pytest.mark.parametrize(
    ("settings", "epochs", "words"),
    [
        ({}, 1, "not asked"),
        ({}, EPOCHS, "not asked"),
        ({"min_epochs": 7}, 6, "not asked"),
        ({"min_epochs": 3, "interval": 2}, 6, "not asked"),
        ({"min_curves": 21}, 6, "20 finished trainings of the 21 needed"),
        ({"spare": 10}, 6, "training 50 is spared"),
        ({"chance": 1e-9}, 6, "to end better"),
    ],
)
def test_what_is_not_judged_goes_on(history, settings, epochs, words):
    assert RULE.decide(hopeless(history, epochs=6), history, BOTH).stop
    decision = CurveRanking(max_epochs=EPOCHS, **settings).decide(hopeless(history, epochs=epochs), history, BOTH)
    assert not decision.stop
    assert words in decision.reason


def test_settings_that_let_it_judge(history):
    for settings in ({"min_epochs": 6}, {"min_epochs": 2, "interval": 4}, {"min_curves": 20}, {"spare": 7}):
        assert CurveRanking(max_epochs=EPOCHS, **settings).decide(hopeless(history), history, BOTH).stop


def test_limits(history):
    limited = (Objective("accuracy", "%", "maximize"), Objective("latency", "ms", "minimize", 4.0))
    decision = RULE.decide(training(50, 4.1, *[99.0] * 6), history, limited)
    assert decision.stop
    assert "it breaks a limit; training" in decision.reason
    never = (Objective("accuracy", "%", "maximize"), Objective("latency", "ms", "minimize", 0.5))
    assert not RULE.decide(hopeless(history), history, never).stop
    # a network that broke the accuracy asked for is nothing to compete with
    accurate = (Objective("accuracy", "%", "maximize", 99.0), LATENCY)
    assert not RULE.decide(hopeless(history), history, accurate).stop


def test_curves_with_holes(history):
    """Evaluated after epochs 4, 8 and 16 only."""

    def holed(one):
        return replace(one, curve=tuple(v if e in (4, 8, 16) else math.nan for e, v in enumerate(one.curve, 1)))

    others = [holed(one) for one in history]
    assert RULE.decide(holed(hopeless(history, epochs=8)), others, BOTH).stop
    decision = RULE.decide(holed(hopeless(history, epochs=6)), others, BOTH)
    assert decision == Decision(False, "epoch 6: its value is nan, which cannot be judged")
    # measured where the others were not
    assert "have a value there" in RULE.decide(hopeless(history, epochs=6), others, BOTH).reason


def test_values_of_curves():
    curves = [training(0, 1.0, 1.0, 7.0, 3.0, 4.0, 9.0), training(1, 1.0, math.nan, math.nan, math.nan, 3.0, 2.0)]
    assert curve_values(curves, 5, 1.0).tolist() == [[9, 7], [3, 3]]
    assert curve_values(curves, 4, 1.0).tolist() == [[7, 7], [3, 3]]
    assert curve_values(curves, 5, -1.0).tolist() == [[-1, -1], [-2, -3]]
    assert curve_values(curves[:1], 1, 1.0).tolist() == [[1, 1]]


def test_a_dip_does_not_stop_a_training(history):
    best = max(history, key=lambda one: one.curve[-1])
    dipped = replace(best, number=50, curve=(*best.curve[:5], 1.0), finished=False)
    assert RULE.decide(hopeless(history), history, BOTH).stop
    assert not RULE.decide(dipped, history, BOTH).stop


def test_features_of_the_network_are_learned_from():
    """The curve is the same for all; a slot of the network decides how it ends."""

    def made(number, good, finished):
        last = (90.0 + number / 100) if good else (50.0 + number / 100)
        curve = [30.0] * 9 + [last] * finished
        return training(number, 2.0, *curve, finished=finished, features=(float(good), float(not good)))

    rule = CurveRanking(max_epochs=10, min_epochs=9, chance=0.3)
    history = [made(number, number % 2 == 0, True) for number in range(30)]
    best = [Training(30, {"latency": 2.0}, (*[30.0] * 9, 80.0), True, (1.0, 0.0))]
    assert rule.decide(made(31, False, False), history + best, BOTH).stop
    plain = [replace(one, features=()) for one in history + best]
    chances = [
        float(rule.decide(one, others, BOTH).reason.split("chance of ")[1].split(" to end")[0])
        for one, others in (
            (made(31, True, False), history + best),
            (replace(made(31, True, False), features=()), plain),
            (made(31, False, False), history + best),
        )
    ]
    assert chances[0] > chances[1] > chances[2]


def test_features_are_as_many_for_all(history):
    with pytest.raises(RecipeError, match="training 0 has 0 features and training 50 has 2; give all"):
        RULE.decide(replace(hopeless(history), features=(1.0, 0.0)), history, BOTH)


def results(rule, make):
    """Share of epochs saved, of the hypervolume lost, and of the front stopped: means over searches."""
    found = []
    for seed in range(6):
        curves = make(40, EPOCHS, seed)
        replayed = replay(rule, curves, BOTH)
        losses = np.array([(-one.curve[-1], one.known["latency"]) for one in curves])
        kept = losses[[not stopped for stopped in replayed.stopped]]
        reference = losses.max(axis=0)
        lost = 1 - hypervolume(kept, reference) / hypervolume(losses, reference)
        front = on_front(curves, BOTH)
        found.append((replayed.saved, lost, np.mean(np.array(replayed.stopped)[front]), sum(replayed.wrong)))
    return np.mean(found, axis=0)


def test_curves_that_cross_are_told_apart():
    """Where what ends high learns late, the latest value stops the best; the ranking has learned from finished ones."""
    saved, lost, front, _ = results(RULE, crossing)
    _, lost_by_value, front_by_value, _ = results(LatestValue(), crossing)
    assert saved > 0.25
    assert front < 0.25 < 0.5 < front_by_value
    assert lost < 0.02 < 0.1 < lost_by_value


def test_it_stops_hardly_anything_that_would_have_entered_the_front():
    saved, lost, _, wrong = results(RULE, saturating)
    assert saved > 0.2
    assert lost < 0.02
    assert wrong < 1.5
