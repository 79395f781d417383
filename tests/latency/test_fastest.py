from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from hwnas.latency.fastest import FastestPredictor

ARCHS = np.array([[0], [1], [2]])


def predictor(ms: list[float], upper: float) -> Any:
    """A predictor of three architectures, its bounds by a factor."""
    given = np.array(ms)
    return SimpleNamespace(
        index="index",
        predict_ms=lambda archs: given[archs[:, 0]],
        interval_ms=lambda archs, confidence: (given[archs[:, 0]] / upper, given[archs[:, 0]] * upper),
        upper_ms=lambda archs, confidence: given[archs[:, 0]] * upper,
    )


def test_each_architecture_has_the_latency_of_its_fastest_precision() -> None:
    both = FastestPredictor([predictor([1.0, 2.0, 3.0], 1.1), predictor([2.0, 1.0, 3.0], 2.0)])
    assert both.predict_ms(ARCHS).tolist() == [1.0, 1.0, 3.0]
    assert both.fastest(ARCHS) == [0, 1, 0]
    low, high = both.interval_ms(ARCHS)
    np.testing.assert_allclose(low, [1 / 1.1, 0.5, 3 / 1.1])
    np.testing.assert_allclose(high, [1.1, 2.0, 3.3])
    np.testing.assert_allclose(both.upper_ms(ARCHS, 0.9), [1.1, 2.0, 3.3])
    assert both.predict_ms(ARCHS[[1, 0]]).tolist() == [1.0, 1.0]
    assert both.index == "index"


def test_the_bound_may_be_that_of_a_slower_prediction() -> None:
    both = FastestPredictor([predictor([1.0, 1.0, 1.0], 1.2), predictor([0.9, 0.9, 0.9], 2.0)])
    np.testing.assert_allclose(both.upper_ms(ARCHS, 0.9), 1.2)
    np.testing.assert_allclose(both.interval_ms(ARCHS)[1], 1.8)
