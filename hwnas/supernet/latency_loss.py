"""Latency as part of the loss: the expected latency of a relaxed network, the forms of the loss, and their pressure.

The expected latency is the mean over the architectures that the probabilities draw. As a function of one edge's
probabilities it is linear, and its slope in one of them the mean over the architectures with that option there: for an
additive predictor the option's cost (ProxylessNAS, arXiv 1812.00332, section 3.3.1), for any other what the paper's sum
would have to hold. So nothing here looks up a row, none can be missing, and no default stands in for one (the authors'
estimator has 200 ms for keys it does not know).

Each form has one number that says how much latency counts, its *pressure*. The paper leaves it to the user; here it
follows the target (`adapted`): it rises while the expected latency is above and falls while it is below, even below
zero, since a derived architecture is to use what the target allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import PredictorError
from hwnas.space import IntMatrix
from hwnas.supernet.alphas import Alphas, FloatMatrix
from hwnas.supernet.relaxed import Relaxation

PredictMs = Callable[[IntMatrix], NDArray[np.float64]]
Form = Literal["add", "multiply", "reinforce"]

# The authors' values, with which a search starts.
FIRST_PRESSURE: dict[Form, float] = {"add": 0.1, "multiply": 0.3, "reinforce": 0.1}
# A step works with the pressure that so many steps more would give: without, latency swings around the target.
FORESIGHT = 100
# The paper's target on the phone, in ms: what every target is scaled to where logarithms are taken.
_REFERENCE = 80.0


def checked_ms(predict_ms: PredictMs, archs: IntMatrix) -> NDArray[np.float64]:
    """(n, slots) -> (n,) ms. Raises PredictorError on anything that is no time."""
    ms = np.asarray(predict_ms(archs), dtype=np.float64)
    if ms.shape != (len(archs),) or not (np.isfinite(ms) & (ms > 0)).all():
        raise PredictorError(f"a predictor must give {len(archs)} times in ms above 0, got {ms.shape}: {ms[:5]}")
    return ms


@dataclass(frozen=True)
class EdgeCosts:
    """Expected latency in ms = `base_ms` + sum of probabilities times `costs_ms` (edges, most options)."""

    base_ms: float
    costs_ms: FloatMatrix

    def expected_ms(self, probabilities: FloatMatrix) -> float:
        """The expected latency at (edges, most options) probabilities."""
        return self.base_ms + float((probabilities * self.costs_ms).sum())


def edge_costs(
    relaxation: Relaxation, predict_ms: PredictMs, alphas: Alphas, rng: np.random.Generator, samples: int = 16
) -> EdgeCosts:
    """What every option of every edge costs, the others being drawn by their probabilities.

    Each of `samples` drawn architectures is predicted with every single choice changed. Exact for an additive
    predictor; for any other a mean over the samples, valid near the present probabilities.
    """
    p = alphas.probabilities()
    drawn = np.stack([alphas.sample(rng) for _ in range(samples)])
    changes = np.argwhere(alphas.exists)
    rows = np.repeat(drawn[:, None], len(changes), axis=1)
    rows[:, np.arange(len(changes)), changes[:, 0]] = changes[:, 1]
    ms = checked_ms(predict_ms, relaxation.archs(rows.reshape(-1, drawn.shape[1]))).reshape(samples, -1)
    costs = np.zeros(p.shape)
    costs[alphas.exists] = ms.mean(axis=0)
    costs = np.where(alphas.exists, costs - (p * costs).sum(axis=1, keepdims=True), 0.0)
    # A drawn architecture is among its own changes. What it differs from the mean by is known from the costs.
    own = (rows == drawn[:, None]).all(axis=2)
    drawn_ms = np.array([row[same][0] for row, same in zip(ms, own, strict=True)])
    expected = drawn_ms.mean() - costs[np.arange(len(costs)), drawn].sum(axis=1).mean()
    return EdgeCosts(float(expected), costs)


@dataclass(frozen=True)
class Pull:
    """A loss, and its derivatives in the cross-entropy and in the expected latency (per ms)."""

    loss: float
    by_cross_entropy: float
    by_ms: float


def add(cross_entropy: float, expected_ms: float, target_ms: float, pressure: float) -> Pull:
    """Cross-entropy + pressure * (E - T) / T: section 3.3.1 of the paper, scaled as in the authors' code."""
    over = (expected_ms - target_ms) / target_ms
    return Pull(cross_entropy + pressure * over, 1.0, pressure / target_ms)


def multiply(cross_entropy: float, expected_ms: float, target_ms: float, pressure: float) -> Pull:
    """Cross-entropy * (log E / log T) ** pressure, latencies in units of which the target has 80.

    The authors' code takes logarithms of ms, of which the paper's target has 80: there both are the same. In ms the
    factor changes its sign at 1 ms, is not defined below, and says something else in any other unit. A constant factor
    of theirs is left out: it changes no step of Adam.
    """
    if expected_ms * _REFERENCE <= target_ms:  # 80 times as fast as asked for: nothing left to gain
        return Pull(0.0, 1.0, 0.0)
    ratio = 1 + math.log(expected_ms / target_ms) / math.log(_REFERENCE)
    factor = ratio**pressure
    slope = cross_entropy * pressure * ratio ** (pressure - 1) / (expected_ms * math.log(_REFERENCE))
    return Pull(cross_entropy * factor, factor, slope)


DIFFERENTIABLE: dict[Form, Callable[[float, float, float, float], Pull]] = {"add": add, "multiply": multiply}


def reward(accuracy: float, ms: float, target_ms: float, pressure: float) -> float:
    """What REINFORCE maximises: accuracy (a fraction) * (T / ms) ** pressure, as in MnasNet (arXiv 1807.11626)."""
    return float(accuracy * (target_ms / ms) ** pressure)


def adapted(pressure: float, expected_ms: float, target_ms: float, rate: float, steps: int = 1) -> float:
    """The pressure after so many steps of dual ascent on "expected latency = target"."""
    return pressure + rate * steps * (expected_ms / target_ms - 1)
