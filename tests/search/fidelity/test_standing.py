from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hwnas.search.fidelity.standing import SPREADS, epsilon_net_order, standing

losses_and_violations = st.integers(0, 12).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, (n, 2), elements=st.integers(0, 5).map(float)),
        hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.0, 0.1, 0.5])),
    )
)


@pytest.mark.parametrize("spread", SPREADS)
@given(drawn=losses_and_violations)
def test_places_follow_limits_then_dominance(spread, drawn):
    losses, violation = drawn
    found = standing(losses, violation, spread)
    assert sorted(found.place) == list(range(len(losses)))
    for a in range(len(losses)):
        for b in range(len(losses)):
            dominates = (losses[a] <= losses[b]).all() and (losses[a] < losses[b]).any()
            if violation[a] < violation[b] or (violation[a] == violation[b] == 0 and dominates):
                assert found.rank[a] < found.rank[b]
                assert found.place[a] < found.place[b]
    if (violation == 0).any():
        assert (violation[found.rank == 0] == 0).all()


def test_of_a_front_the_ends_come_first_and_of_equals_the_earlier():
    losses = np.array([[2.0, 2.0], [2.1, 1.9], [0.0, 4.0], [4.0, 0.0], [2.0, 2.0]])
    found = standing(losses, np.zeros(5), "crowding")
    assert set(found.place[[2, 3]]) == {0, 1}
    assert found.place[0] < found.place[4]


def test_the_net_takes_what_is_farthest_from_all_taken():
    losses = np.array([[0.0, 10.0], [1.0, 9.0], [5.0, 5.0], [10.0, 0.0], [9.5, 0.5]])
    assert epsilon_net_order(losses, np.ptp(losses, axis=0)).tolist() == [0, 3, 2, 1, 4]
    assert epsilon_net_order(np.empty((0, 2)), np.zeros(2)).tolist() == []
    assert sorted(epsilon_net_order(np.ones((4, 2)), np.zeros(2))) == [0, 1, 2, 3]


def test_the_net_does_not_depend_on_units():
    losses = np.random.default_rng(0).normal(size=(30, 3))
    order = epsilon_net_order(losses, np.ptp(losses, axis=0))
    other = losses * [1e-3, 1.0, 1e4] + [5.0, 0.0, -2.0]
    assert epsilon_net_order(other, np.ptp(other, axis=0)).tolist() == order.tolist()
