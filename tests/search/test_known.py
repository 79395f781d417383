"""What is known beforehand: limits, exact objectives, and samples that keep the limits however few do."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from hwnas.errors import InfeasibleError
from hwnas.search.known import Known
from hwnas.search.problem import Objective
from hwnas.space import IntMatrix

SUM = Objective("sum", "", "minimize", 4.0)


def total(archs: IntMatrix) -> np.ndarray:
    return archs.sum(axis=1).astype(float)


def test_every_limit_counts(toy: ModuleType) -> None:
    space = toy.ToySpace()
    first = (Objective("first", "", "maximize", 1.0), lambda archs: archs[:, 0].astype(float))
    known = Known(space, (toy.ACCURACY, SUM), {"sum": total}, [first])
    archs = space.sample(300, np.random.default_rng(0))
    np.testing.assert_array_equal(known.feasible(archs), (total(archs) <= 4) & (archs[:, 0] >= 1))
    assert known.feasible(archs[:0]).shape == (0,)


def test_exact_objectives_are_losses_in_the_order_they_are_given(toy: ModuleType) -> None:
    objectives = (Objective("a", "", "maximize"), toy.ACCURACY, Objective("b", "", "minimize"))
    known = Known(toy.ToySpace(), objectives, {"b": total, "a": lambda archs: 2 * total(archs)})
    archs = known.space.sample(5, np.random.default_rng(0))
    assert known.exact_numbers == [2, 0]
    np.testing.assert_array_equal(known.exact_losses(archs), np.stack([total(archs), -2 * total(archs)], axis=1))
    assert Known(toy.ToySpace(), objectives).exact_losses(archs).shape == (5, 0)


@pytest.mark.parametrize("limit", [100.0, 6.0, 2.0, 0.0])
def test_samples_keep_the_limits_however_few_do(toy: ModuleType, limit: float) -> None:
    known = Known(toy.ToySpace(), (toy.ACCURACY, Objective("sum", "", "minimize", limit)), {"sum": total})
    found = known.sample(20, np.random.default_rng(0))
    assert 1 <= len(found) <= 20
    assert len(np.unique(found, axis=0)) == len(found)
    assert (total(found) <= limit).all()
    assert len(found) == 20 or limit < 3
    np.testing.assert_array_equal(found, known.sample(20, np.random.default_rng(0)))


def test_a_limit_below_everything_says_what_is_attainable(toy: ModuleType) -> None:
    known = Known(toy.ToySpace(), (toy.ACCURACY, Objective("sum", "", "minimize", -1.0)), {"sum": total})
    with pytest.raises(InfeasibleError, match="attainable"):
        known.sample(5, np.random.default_rng(0))
