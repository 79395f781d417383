"""The Gaussian process and its warped targets: against formulas, finite differences and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad

from hwnas.search.gp import GaussianProcess, Kernel, _negative_log_likelihood
from hwnas.search.warped import WarpedModel

RNG = np.random.default_rng(0)
FEATURES = RNG.random((30, 5))
KERNELS = [
    Kernel("laplace", slice(0, 2), deviation=0.8, length=0.7),
    Kernel("gauss", slice(2, 4), deviation=0.9, length=0.5),
    Kernel("linear", slice(4, 5)),
]
TARGETS = np.sin(5 * FEATURES[:, 0]) + FEATURES[:, 2] ** 2 - 2 * FEATURES[:, 4]


def test_the_gradient_is_that_of_the_likelihood() -> None:
    bases = [kernel.base(FEATURES, FEATURES) for kernel in KERNELS]
    standard = (TARGETS - TARGETS.mean()) / TARGETS.std()

    def value(parameters: np.ndarray) -> float:
        return _negative_log_likelihood(KERNELS, bases, standard, parameters)[0]

    def slope(parameters: np.ndarray) -> np.ndarray:
        return _negative_log_likelihood(KERNELS, bases, standard, parameters)[1]

    for seed in range(3):
        at = np.random.default_rng(seed).normal(-0.5, 0.5, 7)
        assert check_grad(value, slope, at) < 1e-4 * max(1.0, float(np.linalg.norm(slope(at))))


def test_predictions_are_the_formula_with_one_kernel() -> None:
    process = GaussianProcess.fit(KERNELS[:1], FEATURES, TARGETS)
    (deviation, length), noise = process.parameters[:2], process.parameters[2]
    mean, scale = TARGETS.mean(), TARGETS.std()

    def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        away = np.abs(a[:, None, :2] - b[None, :, :2]).sum(axis=2)
        return 4 + np.exp(2 * deviation) * np.exp(-away / np.exp(length))

    inner = np.linalg.inv(covariance(FEATURES, FEATURES) + (np.exp(2 * noise) + 1e-6) * np.eye(30))
    new = RNG.random((4, 5))
    cross = covariance(new, FEATURES)
    means, deviations = process.predict(new)
    np.testing.assert_allclose(means, mean + scale * cross @ inner @ ((TARGETS - mean) / scale), rtol=1e-6)
    variance = 4 + np.exp(2 * deviation) - np.einsum("ij,jk,ik->i", cross, inner, cross)
    np.testing.assert_allclose(deviations, scale * np.sqrt(variance), rtol=1e-5)


def test_it_learns_and_knows_what_it_does_not_know() -> None:
    process = GaussianProcess.fit(KERNELS, FEATURES, TARGETS)
    new = np.random.default_rng(1).random((200, 5))
    truth = np.sin(5 * new[:, 0]) + new[:, 2] ** 2 - 2 * new[:, 4]
    means, deviations = process.predict(new)
    assert np.abs(means - truth).mean() < 0.3 * np.abs(truth - truth.mean()).mean()
    assert (np.abs(means - truth) < 2 * deviations).mean() > 0.6
    _, far = process.predict(new + 3)
    assert far.min() > deviations.max()


def test_more_data_that_say_what_was_predicted_change_only_the_uncertainty() -> None:
    process = GaussianProcess.fit(KERNELS, FEATURES, TARGETS)
    new = RNG.random((3, 5))
    before, uncertain = process.predict(new)
    after, certain = process.extended(new, before).predict(new)
    np.testing.assert_allclose(after, before, rtol=1e-6)
    assert (certain < uncertain).all()


@pytest.mark.parametrize("targets", [np.full(30, 2.5), np.where(np.arange(30) % 2, 1e9, -1e9)])
def test_degenerate_targets(targets: np.ndarray) -> None:
    means, deviations = GaussianProcess.fit(KERNELS, FEATURES, targets).predict(FEATURES)
    assert np.isfinite(means).all()
    assert (deviations > 0).all()


def test_the_warp_is_taken_back_and_fits_what_trails_off() -> None:
    quality = 3 * FEATURES[:, 0] + FEATURES[:, 2]
    losses = 6 + 80 * np.exp(-3 * quality)  # errors in percent: most are good, a few are terrible
    warped = WarpedModel.fit(KERNELS, FEATURES, losses)
    new = np.random.default_rng(2).random((300, 5))
    truth = 6 + 80 * np.exp(-3 * (3 * new[:, 0] + new[:, 2]))
    good = truth < np.median(truth)
    found = warped.losses(warped.predict(new)[0])
    plain = GaussianProcess.fit(KERNELS, FEATURES, losses).predict(new)[0]
    assert np.abs(found - truth)[good].mean() < 0.5 * np.abs(plain - truth)[good].mean()


def test_a_warp_of_losses_without_a_tail_leaves_them() -> None:
    losses = 5 * FEATURES[:, 4]
    warped = WarpedModel.fit(KERNELS, FEATURES, losses)
    assert warped.shift > np.ptp(losses)
    np.testing.assert_allclose(warped.losses(warped.predict(FEATURES)[0]), losses, atol=0.3)
