from __future__ import annotations

from collections import Counter

import pytest
from made_curves import BOTH, saturating, training

from hwnas.search.fidelity.hyperband import Hyperband
from hwnas.search.fidelity.replay import replay
from hwnas.search.fidelity.successive_halving import SuccessiveHalving


def test_the_papers_brackets():
    """Table 1 of Li et al. 2018: R = 81, eta = 3; what begins in each bracket, and after how many epochs it is cut."""
    hyperband = Hyperband(max_epochs=81, eta=3, min_epochs=1)
    assert hyperband.s_max == 4
    assert hyperband.sizes == (5, 8, 15, 34, 81)
    assert [hyperband.rungs(s) for s in range(5)] == [(), (27,), (9, 27), (3, 9, 27), (1, 3, 9, 27)]


@pytest.mark.parametrize(
    ("settings", "sizes", "longest"),
    [
        ({"max_epochs": 27, "eta": 3, "min_epochs": 1}, (4, 6, 12, 27), (1, 3, 9)),
        ({"max_epochs": 16, "eta": 2, "min_epochs": 1}, (5, 5, 7, 10, 16), (1, 2, 4, 8)),
        ({"max_epochs": 16, "eta": 3, "min_epochs": 1}, (3, 5, 9), (2, 5)),
        ({"max_epochs": 200, "eta": 3, "min_epochs": 20}, (3, 5, 9), (22, 67)),
        ({"max_epochs": 2, "eta": 2}, (2, 2), (1,)),
        ({"max_epochs": 16}, (3, 3, 4), (4, 8)),  # from a quarter on, unless asked otherwise
        ({"max_epochs": 243, "eta": 3, "min_epochs": 1}, (6, 9, 18, 41, 98, 243), (1, 3, 9, 27, 81)),
    ],
)
def test_brackets_of_other_settings(settings, sizes, longest):
    hyperband = Hyperband(**settings)
    assert hyperband.sizes == sizes
    assert hyperband.rungs(hyperband.s_max) == longest
    assert longest[0] >= settings.get("min_epochs", 1)


def test_brackets_are_dealt_in_proportion_from_the_first_training_on():
    hyperband = Hyperband(max_epochs=81, eta=3, min_epochs=1)
    dealt = [hyperband.bracket_of(number) for number in range(3 * 143)]
    assert Counter(dealt[:143]) == dict(enumerate(hyperband.sizes))
    assert dealt[:143] == dealt[143:286] == dealt[286:]
    for n in range(1, 143):
        counts = Counter(dealt[:n])
        assert all(abs(counts[s] - n * size / 143) < 2 for s, size in enumerate(hyperband.sizes))


def test_trainings_compete_within_their_bracket():
    hyperband = Hyperband(max_epochs=9, eta=3, min_epochs=1)
    by_bracket = {s: [n for n in range(60) if hyperband.bracket_of(n) == s] for s in range(3)}
    number = by_bracket[2][-1]
    bad = training(number, 2.0, 10.0)
    good = {
        s: [training(n, 1.0, 50.0, 60.0, 70.0) for n in numbers if n != number] for s, numbers in by_bracket.items()
    }
    assert not hyperband.decide(bad, good[0] + good[1], BOTH).stop
    assert hyperband.decide(bad, good[2], BOTH).stop
    assert hyperband.decide(bad, good[2], BOTH).reason.startswith("bracket 2, epoch 1: place")
    later = training(by_bracket[1][-1], 2.0, 10.0)
    assert not hyperband.decide(later, good[1], BOTH).stop, "bracket 1 begins to judge after three epochs"
    assert hyperband.decide(training(later.number, 2.0, 10.0, 10.0, 10.0), good[1], BOTH).stop
    never = training(by_bracket[0][-1], 2.0, *[10.0] * 8)
    assert not hyperband.decide(never, good[0] + good[1] + good[2], BOTH).stop


def test_it_stops_less_than_its_boldest_bracket_and_more_than_nothing():
    curves = saturating(60, 27, seed=1)
    whole = replay(Hyperband(max_epochs=27, eta=3, min_epochs=1), curves, BOTH)
    bold = replay(SuccessiveHalving(max_epochs=27, eta=3, min_epochs=1), curves, BOTH)
    assert 0.1 < whole.saved < bold.saved
