from __future__ import annotations

import numpy as np
import pytest

from hwnas.errors import RecipeError
from hwnas.search.problem import Objective, check_objectives, to_losses, violations

ACCURACY = Objective("accuracy", "%", "maximize", limit=70.0)
LATENCY = Objective("latency", "ms", "minimize", limit=2.0)
SIZE = Objective("size", "MB", "minimize")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "ms", "minimize"), "needs a name"),
        (("latency", "ms", "min"), "got 'min'"),
        (("latency", "ms", "minimize", float("nan")), "finite"),
        (("latency", "ms", "minimize", float("inf")), "finite"),
    ],
)
def test_an_objective_refuses_what_it_cannot_mean(arguments, message):
    with pytest.raises(RecipeError, match=message):
        Objective(*arguments)


def test_labels_carry_the_unit():
    assert LATENCY.label == "latency (ms)"
    assert Objective("score", "", "maximize").label == "score"
    assert LATENCY.quote(0.1234567) == "0.1235 ms"
    assert Objective("score", "", "maximize").quote(3.0) == "3"


def test_losses_flip_only_what_is_maximised_and_back():
    values = np.array([[80.0, 1.0], [60.0, 3.0]])
    losses = to_losses(values, [ACCURACY, LATENCY])
    np.testing.assert_array_equal(losses, [[-80.0, 1.0], [-60.0, 3.0]])
    np.testing.assert_array_equal(to_losses(losses, [ACCURACY, LATENCY]), values)


def test_violations_are_relative_and_summed():
    values = np.array([[80.0, 1.0, 9.0], [70.0, 2.0, 9.0], [35.0, 2.0, 9.0], [63.0, 3.0, 9.0], [90.0, 2.2, 9.0]])
    np.testing.assert_allclose(violations(values, [ACCURACY, LATENCY, SIZE]), [0, 0, 0.5, 0.6, 0.1])


def test_violations_of_a_negative_and_of_a_zero_limit():
    margin = Objective("margin", "dB", "maximize", limit=-10.0)
    drift = Objective("drift", "%", "minimize", limit=0.0)
    values = np.array([[-10.0, 0.0], [-15.0, -1.0], [-5.0, 0.25]])
    np.testing.assert_allclose(violations(values, [margin, drift]), [0, 0.5, 0.25])


def test_nan_is_never_feasible():
    assert violations(np.array([[np.nan, 1.0]]), [ACCURACY, LATENCY])[0] == np.inf
    assert violations(np.array([[np.nan]]), [SIZE])[0] == np.inf


def test_values_must_have_a_column_per_objective():
    with pytest.raises(RecipeError, match=r"\(n, 2\).*shape \(4, 3\)"):
        to_losses(np.zeros((4, 3)), [ACCURACY, LATENCY])
    with pytest.raises(RecipeError, match="shape"):
        violations(np.zeros(2), [ACCURACY, LATENCY])


def test_objectives_are_there_and_named_apart():
    check_objectives([ACCURACY, LATENCY])
    with pytest.raises(RecipeError, match="at least one"):
        check_objectives([])
    with pytest.raises(RecipeError, match="name of its own"):
        check_objectives([LATENCY, LATENCY])
