from __future__ import annotations

import numpy as np
import pytest
import toy_space

from hwnas.search import accuracy_models as models
from hwnas.search.accuracy_features import Presence, encoder_of
from hwnas.search.accuracy_link import Link, choose_link
from hwnas.search.gp import GaussianProcess


@pytest.fixture(scope="module")
def known():
    """The encoder, 150 architectures, and values in which every option and pairs of widths count."""
    space = toy_space.ToySpace(stages=3, layers=2)
    archs = np.unique(space.sample(400, np.random.default_rng(0)), axis=0)[::2][:150]
    return encoder_of(Presence(space), archs, None), archs, additive(archs) + pairs(archs)


def additive(archs):
    return np.random.default_rng(5).normal(size=archs.shape[1]) @ archs.T


def pairs(archs):
    return 2.0 * (archs[:, 1] == archs[:, 4]) + archs[:, 1] * archs[:, 7]


@pytest.mark.parametrize("name", ["additive", "pairs", "smooth"])
def test_the_folded_model_is_the_mean_of_the_process(known, name):
    """Without the folding of kernels: k(x, X) (K + noise)^-1 y."""
    encoder, archs, values = known
    model = getattr(models, f"fit_{name}")(encoder, archs, values, 0)
    kernels = {
        "additive": models.additive_kernels,
        "pairs": models.pair_kernels,
        "smooth": models.smooth_kernels,
    }[name](encoder)
    asked = encoder.presence.space.sample(40, np.random.default_rng(8))
    features, new = encoder.raw(archs) @ kernels.matrix, encoder.raw(asked) @ kernels.matrix
    parameters = GaussianProcess.fit(
        kernels.kernels, features[models.spread_rows(values, 400)], np.sort(values)
    ).parameters

    def covariance(left, right):
        return sum(
            kernel.value(kernel.base(left, right), deviation, length)
            for kernel, (deviation, length) in zip(kernels.kernels, parameters[:-1].reshape(-1, 2), strict=True)
        )

    noise = np.exp(2 * parameters[-1]) * np.eye(len(archs))
    expected = values.mean() + covariance(new, features) @ np.linalg.solve(
        covariance(features, features) + noise, values - values.mean()
    )
    np.testing.assert_allclose(model.predict(encoder.raw(asked)), expected, atol=2e-3 * values.std())


@pytest.mark.parametrize(
    ("name", "function", "least", "most"),
    [
        ("additive", additive, 0.0, 0.05),
        ("additive", pairs, 0.3, 1.0),
        ("pairs", pairs, 0.0, 0.1),
        ("smooth", pairs, 0.0, 0.2),
        ("trees", pairs, 0.0, 0.4),
    ],
)
def test_what_each_model_can_learn(known, name, function, least, most):
    encoder, archs, _ = known
    unseen = encoder.presence.space.sample(300, np.random.default_rng(1))
    model = getattr(models, f"fit_{name}")(encoder, archs, function(archs), 0)
    error = np.sqrt(((model.predict(encoder.raw(unseen)) - function(unseen)) ** 2).mean())
    assert least <= error / function(unseen).std() <= most


def test_more_rows_than_kernels_compare_with(known, monkeypatch):
    encoder, archs, values = known
    values = values + np.random.default_rng(1).normal(scale=0.3, size=len(values))
    raw = encoder.raw(encoder.presence.space.sample(200, np.random.default_rng(1)))
    exact = models.fit_smooth(encoder, archs, values, 0)
    monkeypatch.setattr(models, "_SUPPORT", 100)
    fewer = models.fit_smooth(encoder, archs, values, 0)
    assert [len(bumps.support) for bumps in fewer.bumps] == [100] * len(exact.bumps)
    assert np.corrcoef(exact.predict(raw), fewer.predict(raw))[0, 1] > 0.97
    monkeypatch.setattr(models, "_SUPPORT", 5)
    assert np.corrcoef(exact.predict(raw), models.fit_smooth(encoder, archs, values, 0).predict(raw))[0, 1] < 0.95


def test_the_quadratic_kernel_is_that_of_all_products():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3))
    kernel = models.Quadratic("linear", slice(0, 3))

    def products(x):
        return np.einsum("ni,nj->nij", x, x).reshape(len(x), -1)

    np.testing.assert_allclose(kernel.value(kernel.base(a, b), 0.0, 0.0), products(a) @ products(b).T)
    np.testing.assert_allclose(kernel.prior_variance(a, 0.3), np.diag(kernel.value(kernel.base(a, a), 0.3, 0.0)))


def test_rows_spread_over_the_values():
    values = np.array([5.0, 1.0, 9.0, 3.0, 7.0])
    assert values[models.spread_rows(values, 3)].tolist() == [1.0, 5.0, 9.0]
    assert sorted(models.spread_rows(values, 99).tolist()) == [0, 1, 2, 3, 4]


def test_the_link_is_monotone_and_bounded():
    link = Link(best=76.0, shift=0.5, worst=70.0)
    accuracy = np.array([70.0, 75.0, 76.0])
    np.testing.assert_allclose(link.accuracy(link.values(accuracy)), accuracy)
    assert (np.diff(link.values(accuracy)) < 0).all()
    assert link.accuracy(np.array([-1e9, 1e9])).tolist() == [76.5, 67.0]
    assert Link(99.9, 5.0, 1.0).accuracy(np.array([-1e9, 1e9])).tolist() == [100.0, 0.0]


def test_the_link_is_chosen_by_the_data(known):
    encoder, archs, _ = known
    value = additive(archs)
    straight = 70 + value
    saturated = 90 - np.exp(-value)
    near, far = (choose_link(encoder, archs, accuracy) for accuracy in (saturated, straight))
    assert near.shift / np.ptp(saturated) < 0.25 * far.shift / np.ptp(straight)
    assert far.best == straight.max()


def test_weights_too_large_for_single_precision(known):
    """Noise-free values drive the lengths of the smooth kernels, and with them the weights, to extremes."""
    encoder, archs, values = known
    noisy = values + np.random.default_rng(1).normal(scale=0.3, size=len(values))
    assert models.fit_smooth(encoder, archs, values, 0).linear.dtype == np.float64
    assert models.fit_smooth(encoder, archs, noisy, 0).linear.dtype == np.float32
