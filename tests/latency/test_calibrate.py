"""Calibration of profiled blocks with whole networks, on synthetic machines whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from hwnas.errors import PredictorError
from hwnas.latency.calibrate import calibrate

BLOCKS = 60


def machine(seed, networks, *, slope=1.0, clock_ms=0.0, intercept_ms=0.0, feature_ms=0.0, noise=0.003):
    """Profiled times are (seen + clock * nodes) / slope; the truth adds a feature that the profile does not see."""
    rng = np.random.default_rng(seed)
    nodes = rng.integers(2, 9, BLOCKS).astype(float)
    features = np.stack([rng.uniform(0.5, 2, BLOCKS), nodes], axis=1)
    seen = rng.uniform(0.02, 0.2, BLOCKS)
    true = seen + feature_ms * features[:, 0]
    counts = rng.multinomial(20, np.full(BLOCKS, 1 / BLOCKS), networks + 200).astype(float)
    latency = intercept_ms + counts @ true
    measured = latency * np.exp(rng.normal(0, noise, len(latency)))
    return (seen + clock_ms * nodes) / slope, nodes, features, counts, measured, latency


def mean_error(networks=24, seed=0, **how):
    profiled, nodes, features, counts, measured, latency = machine(seed, networks, **how)
    found = calibrate(profiled, nodes, features, counts[:networks], measured[:networks])
    assert (found.block_ms > 0).all()
    assert found.intercept_ms >= 0
    predicted = found.intercept_ms + counts[networks:] @ found.block_ms
    return float(np.abs(predicted / latency[networks:] - 1).mean())


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="profile is exact"),
        pytest.param({"slope": 0.7}, id="profile is too long by a factor"),
        pytest.param({"slope": 1.2, "intercept_ms": 0.5}, id="and a fixed cost"),
        pytest.param({"clock_ms": 0.05}, id="clock read at every node, half of the profile"),
        pytest.param({"feature_ms": 0.03}, id="a cost that the profile does not see"),
    ],
)
def test_networks_never_seen_are_predicted(how):
    assert mean_error(**how) < 0.012


def test_more_networks_help_where_the_profile_is_poor():
    poor = {"clock_ms": 0.05, "feature_ms": 0.05, "noise": 0.01}
    few, many = (np.mean([mean_error(n, seed, **poor) for seed in range(4)]) for n in (6, 60))
    assert many < few


def test_one_network_gives_the_scale():
    assert mean_error(1, slope=0.5) < 0.05


def test_fusions_are_learnt_with_their_sign():
    """Two kinds save and cost time that no block carries; a third kind never occurs."""
    profiled, nodes, features, counts, measured, latency = machine(0, 48)
    rng = np.random.default_rng(1)
    fusions = np.column_stack([rng.integers(0, 20, (len(counts), 2)), np.zeros(len(counts))]).astype(float)
    extra = fusions @ [-0.02, 0.03, 0.0]
    measured, latency = measured + extra, latency + extra
    assert (latency > 0).all()
    found = calibrate(profiled, nodes, features, counts[:48], measured[:48], fusions[:48])
    np.testing.assert_allclose(found.fusion_ms, [-0.02, 0.03, 0.0], atol=0.003)
    errors = found.predict_ms(counts[48:], fusions[48:]) / latency[48:] - 1
    without = calibrate(profiled, nodes, features, counts[:48], measured[:48])
    assert np.abs(errors).mean() < 0.012
    assert np.abs(without.predict_ms(counts[48:], fusions[48:, :0]) / latency[48:] - 1).mean() > 0.03


def test_fusions_that_matter_nowhere_get_nothing():
    profiled, nodes, features, counts, measured, latency = machine(0, 48)
    fusions = np.random.default_rng(1).integers(0, 20, (len(counts), 3)).astype(float)
    found = calibrate(profiled, nodes, features, counts[:48], measured[:48], fusions[:48])
    errors = found.predict_ms(counts[48:], fusions[48:]) / latency[48:] - 1
    assert np.abs(errors).mean() < 0.012


def test_negative_fixed_costs_are_not_believed():
    profiled, nodes, features, counts, _, latency = machine(0, 24)
    found = calibrate(profiled, nodes, features, counts[:24], latency[:24] - 0.5)
    assert found.intercept_ms == 0


def test_without_networks_there_is_an_error():
    profiled, nodes, features, counts, _, _ = machine(0, 1)
    with pytest.raises(PredictorError, match="no whole network"):
        calibrate(profiled, nodes, features, counts[:0], np.zeros(0))
