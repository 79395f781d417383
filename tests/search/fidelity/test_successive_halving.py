from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_curves import ACCURACY, BOTH, saturating, training

from hwnas.search.fidelity.replay import replay
from hwnas.search.fidelity.stopper import Decision, Training
from hwnas.search.fidelity.successive_halving import SuccessiveHalving
from hwnas.search.pareto import hypervolume
from hwnas.search.problem import Objective


@pytest.mark.parametrize(
    ("settings", "rungs"),
    [
        (
            {"max_epochs": 9, "eta": 3, "min_epochs": 1},
            (1, 3),
        ),  # figure 1 of ASHA; its last rung is the end
        ({"max_epochs": 9, "eta": 3, "min_epochs": 3}, (3,)),
        ({"max_epochs": 81, "eta": 3, "min_epochs": 1}, (1, 3, 9, 27)),
        ({"max_epochs": 82, "eta": 3, "min_epochs": 1}, (1, 3, 9, 27, 81)),
        ({"max_epochs": 256, "eta": 4, "min_epochs": 1}, (1, 4, 16, 64)),
        ({"max_epochs": 200, "eta": 3, "min_epochs": 12}, (12, 36, 108)),
        ({"max_epochs": 10, "eta": 50, "min_epochs": 4}, (4,)),
        ({"max_epochs": 2, "eta": 2}, (1,)),
        ({"max_epochs": 16}, (4, 8)),  # from a quarter on, unless asked otherwise
        ({"max_epochs": 17, "eta": 3}, (5, 15)),
    ],
)
def test_rungs(settings, rungs):
    assert SuccessiveHalving(**settings).rungs == rungs


@pytest.mark.parametrize(("eta", "n", "go_on"), [(3, 9, 3), (3, 10, 3), (3, 2, 1), (2, 9, 4), (4, 81, 20), (4, 1, 1)])
def test_with_one_objective_the_best_of_a_rung_go_on(eta, n, go_on):
    stopper = SuccessiveHalving(max_epochs=9, eta=eta, min_epochs=1)
    values = np.random.default_rng(n).permutation(n).astype(float).tolist()
    at_rung = [Training(number, {}, (value,)) for number, value in enumerate(values)]
    kept = {one.curve[0] for one in at_rung if not stopper.decide(one, at_rung, (ACCURACY,)).stop}
    assert kept == set(map(float, range(n - go_on, n)))


def test_a_loss_is_minimised():
    stopper, loss = SuccessiveHalving(max_epochs=9, eta=3, min_epochs=1), (Objective("loss", "", "minimize"),)
    at_rung = [Training(number, {}, (float(number),)) for number in range(9)]
    assert [stopper.decide(one, at_rung, loss).stop for one in at_rung] == [False] * 3 + [True] * 6


def test_those_who_come_first_are_judged_by_who_is_there():
    stopper = SuccessiveHalving(max_epochs=9, eta=3, min_epochs=1)
    worst = training(0, 2.0, 10.0)
    assert not stopper.decide(worst, [], BOTH).stop
    better = [training(number, 1.0, 50.0, 60.0) for number in range(1, 4)]
    assert stopper.decide(worst, better, BOTH).stop
    assert not stopper.decide(training(0, 2.0, 10.0, 11.0), better, BOTH).stop, "after two epochs there is no rung"


def test_trainings_that_are_not_there_yet_or_broke_off_do_not_count():
    stopper = SuccessiveHalving(max_epochs=9, eta=3, min_epochs=1)
    others = [
        training(1, 1.0, 50.0, 60.0),
        training(2, 1.0, 50.0, 60.0, float("nan")),
        training(3, 1.0),
        training(4, 1.0, 20.0, 30.0, 40.0),  # running or stopped, it was at the rung of three epochs
    ]
    decision = stopper.decide(training(0, 2.0, 9.0, 9.0, 9.0), others, BOTH)
    assert decision == Decision(True, "epoch 3: place 2 of 2, of which the best 1 go on; front 2 of 2")


values = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=20)


@given(values, st.sampled_from(["crowding", "epsilon_net"]), st.randoms(use_true_random=False))
def test_the_front_of_a_rung_is_never_stopped_and_order_does_not_matter(drawn, spread, shuffle):
    stopper = SuccessiveHalving(max_epochs=9, eta=3, min_epochs=1, spread=spread)
    at_rung = [training(number, float(ms), float(top)) for number, (top, ms) in enumerate(drawn)]
    decisions = [stopper.decide(one, at_rung, BOTH) for one in at_rung]
    for one, decision in zip(at_rung, decisions, strict=True):
        mine = np.array([one.curve[0], -one.known["latency"]])
        theirs = np.array([[other.curve[0], -other.known["latency"]] for other in at_rung])
        dominated = ((theirs >= mine).all(axis=1) & (theirs > mine).any(axis=1)).any()
        assert dominated or not decision.stop
    shuffle.shuffle(at_rung)
    assert [stopper.decide(one, at_rung, BOTH) for one in sorted(at_rung, key=lambda one: one.number)] == decisions


def test_what_breaks_a_limit_comes_last():
    limited = (Objective("accuracy", "%", "maximize", 70.0), Objective("latency", "ms", "minimize", 4.0))
    stopper = SuccessiveHalving(max_epochs=9, eta=3, min_epochs=1)
    slow = training(0, 5.0, 60.0)
    others = [training(number, 3.9, 10.0 + number) for number in range(1, 4)]
    assert not stopper.decide(slow, others, BOTH).stop
    decision = stopper.decide(slow, others, limited)
    assert decision.stop
    assert "breaks a limit" in decision.reason
    # below the accuracy asked for at the end, which is no reason to stop after one epoch
    assert not stopper.decide(others[2], [slow, *others], limited).stop
    # nothing keeps the limit: the one nearest to it goes on
    slower = [training(number, 5.0 + number, 60.0) for number in range(1, 4)]
    assert [stopper.decide(one, [slow, *slower], limited).stop for one in (slow, *slower)] == [False, True, True, True]


def test_halving_saves_training_and_loses_little():
    """On curves that keep their order; stopping as many at random loses several times as much."""
    stopper = SuccessiveHalving(max_epochs=27, eta=3, min_epochs=3)
    saved, lost, lost_at_random = [], [], []
    for seed in range(12):
        curves = saturating(40, 27, seed)
        found = replay(stopper, curves, BOTH)
        losses = np.array([(-one.curve[-1], one.known["latency"]) for one in curves])
        reference = losses.max(axis=0)
        stopped = list(found.stopped)
        for results in (lost, lost_at_random):
            kept = losses[[not gone for gone in stopped]]
            results.append(1 - hypervolume(kept, reference) / hypervolume(losses, reference))
            random.Random(seed).shuffle(stopped)
        saved.append(found.saved)
    assert np.mean(saved) > 0.5
    assert np.mean(lost) < 0.02
    assert np.mean(lost_at_random) > 5 * np.mean(lost)
