from __future__ import annotations

import math
from dataclasses import replace

import pytest
from made_curves import BOTH, saturating, training

from hwnas.errors import RecipeError
from hwnas.search.fidelity import STOPPERS, make_stopper
from hwnas.search.fidelity.curve_ranking import CurveRanking
from hwnas.search.fidelity.replay import Calibration, calibration, on_front, replay
from hwnas.search.fidelity.stopper import Decision
from hwnas.search.problem import Objective


class Recorder:
    """Stops the trainings of these numbers after two epochs, and keeps what it was shown."""

    def __init__(self, *, stops=(), max_epochs=3):
        self.stops, self.shown = stops, []

    def decide(self, one, others, objectives):
        self.shown.append((one.number, one.epochs, sorted((other.number, other.epochs) for other in others)))
        return Decision(one.number in self.stops and one.epochs == 2, "")


FOUR = [
    training(0, 1.0, 10.0, 20.0, 30.0, finished=True),
    training(1, 2.0, 10.0, 20.0, 40.0, finished=True),
    training(2, 3.0, 10.0, 20.0, 35.0, finished=True),
    training(3, 4.0, 10.0, 20.0, 50.0, finished=True),
]


def test_what_was_saved_and_what_was_wrong():
    found = replay(Recorder(stops=(1, 2)), FOUR, BOTH)
    assert found.epochs == (3, 2, 2, 3)
    assert found.stopped == (False, True, True, False)
    assert found.wrong == (False, True, True, False), "each would be on the front of the two that finished"
    assert found.saved == pytest.approx(1 - 10 / 12)
    assert replay(Recorder(stops=(2,)), FOUR, BOTH).wrong == (False,) * 4, "one that finished is better"
    assert replay(Recorder(), [], BOTH).epochs == ()


def test_a_rule_sees_what_it_would_have_seen():
    alone = Recorder(stops=(1,))
    replay(alone, FOUR[:3], BOTH)
    assert alone.shown == [
        (0, 1, []),
        (0, 2, []),
        (1, 1, [(0, 3)]),
        (1, 2, [(0, 3)]),
        (2, 1, [(0, 3), (1, 2)]),
        (2, 2, [(0, 3), (1, 2)]),
    ]
    together = Recorder(stops=(1,))
    replay(together, FOUR[:3], BOTH, workers=2)
    assert together.shown[:4] == [(0, 1, []), (1, 1, [(0, 1)]), (0, 2, [(1, 1)]), (1, 2, [(0, 2)])]
    assert together.shown[4:] == [(2, 1, [(0, 3), (1, 2)]), (2, 2, [(0, 3), (1, 2)])]


@pytest.mark.parametrize("name", STOPPERS)
@pytest.mark.parametrize("workers", [1, 4])
def test_the_same_search_decides_the_same(name, workers):
    rule, curves = make_stopper(name, {}, 12), saturating(30, 12, seed=3)
    found = replay(rule, curves, BOTH, workers)
    assert found == replay(rule, curves, BOTH, workers)
    assert (found.saved > 0.05) == (name != "none")
    assert any(not stopped for stopped in found.stopped)


def test_a_search_that_goes_on_decides_as_if_it_had_not_ended():
    rule, curves = CurveRanking(max_epochs=12), saturating(30, 12, seed=3)
    whole = replay(rule, curves, BOTH)
    assert replay(rule, curves[:20], BOTH).epochs == whole.epochs[:20]
    # from what a run has on disk: finished and stopped curves of the first 20
    saved = [one.until(epochs) for one, epochs in zip(curves[:20], whole.epochs, strict=False)]
    for epoch in range(1, whole.epochs[20] + 1):
        decision = rule.decide(curves[20].until(epoch), saved, BOTH)
        assert decision.stop == (whole.stopped[20] and epoch == whole.epochs[20])


def test_calibration_counts_what_would_have_been_lost():
    assert calibration(Recorder(), FOUR, BOTH) == Calibration(judged=4, stopped=0, wrong=0)
    assert calibration(Recorder(stops=(1, 2)), FOUR, BOTH) == Calibration(judged=4, stopped=2, wrong=1)
    assert calibration(Recorder(stops=(1, 2)), [*FOUR[:2], FOUR[2].until(2)], BOTH) == Calibration(2, 1, 1)
    assert calibration(Recorder(), [], BOTH) == Calibration(0, 0, 0)
    found = calibration(CurveRanking(max_epochs=12), saturating(30, 12, seed=3), BOTH)
    assert found.judged == 30
    assert found.stopped > 10
    assert found.wrong <= 0.15 * found.stopped


def test_the_front_keeps_limits():
    limited = (Objective("accuracy", "%", "maximize", 35.0), Objective("latency", "ms", "minimize", 3.5))
    assert on_front(FOUR, BOTH).tolist() == [True, True, False, True]
    assert on_front(FOUR, limited).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("trainings", "workers", "words"),
    [
        ([FOUR[0], FOUR[0]], 1, "a number of its own"),
        ([FOUR[0], FOUR[1].until(2)], 1, "training 1 ended after 2 epochs without being finished"),
        (FOUR, 0, "at least 1 worker, got 0"),
    ],
)
def test_what_cannot_be_replayed(trainings, workers, words):
    with pytest.raises(RecipeError, match=words):
        replay(Recorder(), trainings, BOTH, workers)


def test_holes_stay_holes():
    holed = replace(FOUR[0], curve=(10.0, math.nan, 30.0))
    assert replay(make_stopper("successive_halving", {}, 3), [holed], BOTH).epochs == (3,)
