"""The expected latency, the forms of the loss, and the pressure that follows a target."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hwnas.errors import PredictorError
from hwnas.space import IntMatrix
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.supernet.alphas import Alphas
from hwnas.supernet.latency_loss import DIFFERENTIABLE, adapted, add, checked_ms, edge_costs, multiply, reward
from hwnas.supernet.relaxations import relax
from hwnas.supernet.relaxed import Relaxation

SPACE = MobileNetV3Space(
    resolutions=(8,), depths=(1, 2), kernels=(3, 5), expands=(1, 2), stem_width=8, stem_stride=1, stage_widths=(8, 8),
    stage_strides=(1, 1), se=(False, False), activations=("relu", "relu"), head_widths=(8, 8), num_classes=2,
)  # fmt: skip


def random_alphas(relaxation: Relaxation, seed: int) -> Alphas:
    alphas = Alphas([len(edge.options) for edge in relaxation.edges], 0.1)
    noise = np.random.default_rng(seed).normal(size=alphas.values.shape)
    alphas.values += np.where(alphas.exists, noise, 0.0)
    return alphas


def macs(archs: IntMatrix) -> np.ndarray:
    """Additive: 1 ms for 100,000 multiply-accumulates."""
    return np.array([sum(block.macs for block in SPACE.blocks(tuple(arch))) for arch in archs.tolist()]) / 1e5


def expected_by_counting(relaxation: Relaxation, alphas: Alphas, ms: np.ndarray, choices: np.ndarray) -> float:
    p = alphas.probabilities()
    return float((p[np.arange(len(p)), choices].prod(axis=1) * ms).sum())


def test_the_expected_latency_of_an_additive_predictor_is_exact_from_one_sample() -> None:
    relaxation = relax(SPACE)
    alphas = random_alphas(relaxation, 0)
    everything = np.array(list(itertools.product(*(range(len(edge.options)) for edge in relaxation.edges))))
    ms = macs(relaxation.archs(everything))
    costs = edge_costs(relaxation, macs, alphas, np.random.default_rng(0), samples=1)
    here = expected_by_counting(relaxation, alphas, ms, everything)
    assert costs.expected_ms(alphas.probabilities()) == pytest.approx(here, rel=1e-12)
    # and so it is at other probabilities
    other = random_alphas(relaxation, 1)
    there = expected_by_counting(relaxation, other, ms, everything)
    assert costs.expected_ms(other.probabilities()) == pytest.approx(there, rel=1e-12)
    assert abs(here / there - 1) > 1e-3


def test_any_predictor_gets_its_own_gradient() -> None:
    """On cells, where an edge's cost depends on the others: the derivative of the true expectation."""
    relaxation = relax(NasBench201Space(num_classes=2, channels=4, cells=1, resolution=8))
    alphas = random_alphas(relaxation, 0)

    def predict(archs: IntMatrix) -> np.ndarray:
        return np.asarray(1.0 + (archs == 3).sum(1) + 0.5 * (archs[:, 0] == 3) * (archs[:, 2] == 3))

    everything = np.array(list(itertools.product(range(5), repeat=6)))
    ms = predict(relaxation.archs(everything))
    costs = edge_costs(relaxation, predict, alphas, np.random.default_rng(0), samples=400)
    p = alphas.probabilities()
    assert costs.expected_ms(p) == pytest.approx(expected_by_counting(relaxation, alphas, ms, everything), rel=0.02)
    weights = p[np.arange(6), everything].prod(axis=1)
    for edge, option in ((0, 3), (2, 1), (5, 0)):
        there = everything[:, edge] == option
        mean = (weights * ms)[there].sum() / weights[there].sum() - (weights * ms).sum()
        assert costs.costs_ms[edge, option] == pytest.approx(mean, abs=0.08)


@pytest.mark.parametrize(
    "answer", [np.array([1.0, np.nan]), np.array([1.0, 0.0]), np.array([1.0, -2.0]), np.ones(3), np.array([1, np.inf])]
)
def test_what_is_no_time_is_an_error(answer: np.ndarray) -> None:
    archs = np.zeros((2, 3), dtype=np.int64)
    assert checked_ms(lambda _: np.array([1.0, 2.0]), archs).tolist() == [1.0, 2.0]
    with pytest.raises(PredictorError, match="2 times in ms above 0"):
        checked_ms(lambda _: answer, archs)


def test_an_error_of_the_predictor_is_not_hidden() -> None:
    def predict(archs: IntMatrix) -> np.ndarray:
        if (archs[:, 3] == 1).any():
            raise KeyError("no row")
        return np.ones(len(archs))

    relaxation = relax(SPACE)
    with pytest.raises(KeyError, match="no row"):
        edge_costs(relaxation, predict, random_alphas(relaxation, 0), np.random.default_rng(0))


@pytest.mark.parametrize("form", DIFFERENTIABLE)
@pytest.mark.parametrize(("expected_ms", "target_ms"), [(100.0, 80.0), (0.02, 0.05), (3.0, 0.9)])
@pytest.mark.parametrize("pressure", [0.0, 0.3, 2.5, -0.2])
def test_derivatives_are_the_numerical_ones(form: str, expected_ms: float, target_ms: float, pressure: float) -> None:
    loss = DIFFERENTIABLE[form]  # type: ignore[index]
    pull, step = loss(1.7, expected_ms, target_ms, pressure), 1e-5
    above, below = (loss(1.7, expected_ms * (1 + sign * step), target_ms, pressure).loss for sign in (1, -1))
    assert pull.by_ms == pytest.approx((above - below) / (2 * step * expected_ms), rel=1e-5, abs=1e-9)
    above, below = (loss(1.7 + sign * step, expected_ms, target_ms, pressure).loss for sign in (1, -1))
    assert pull.by_cross_entropy == pytest.approx((above - below) / (2 * step), rel=1e-6)
    assert np.sign(pull.by_ms) == np.sign(pressure)


def test_the_forms_are_the_authors() -> None:
    assert add(1.5, 100.0, 80.0, 0.1).loss == pytest.approx(1.5 + 0.1 * 20 / 80)
    assert multiply(1.5, 100.0, 80.0, 0.3).loss == pytest.approx(1.5 * (math.log(100) / math.log(80)) ** 0.3)
    # below 1 ms, where the logarithm of ms changes its sign, it still grows with latency, in any unit alike
    assert multiply(1.5, 0.05, 0.04, 0.3).loss == pytest.approx(multiply(1.5, 100.0, 80.0, 0.3).loss)
    assert multiply(1.5, 0.001, 80.0, 0.3).by_ms == 0
    assert reward(0.9, 40.0, 80.0, 0.1) == pytest.approx(0.9 * 2**0.1)


def test_pressure_follows_the_target() -> None:
    assert adapted(0.1, 2.0, 1.0, 0.05) == pytest.approx(0.15)
    assert adapted(0.1, 0.5, 1.0, 0.05) == pytest.approx(0.075)
    assert adapted(0.01, 0.5, 1.0, 0.05) == pytest.approx(-0.015)
    assert adapted(0.1, 2.0, 1.0, 0.05, 20) == pytest.approx(1.1)
    assert adapted(0.1, 2.0, 1.0, 0.0) == 0.1
