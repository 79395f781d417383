from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwnas.errors import PredictorError
from hwnas.latency.agreement import agreement, beyond_noise, coverage, judge, noise_sd, rank_correlations
from hwnas.validation import Agreement, Promise

RNG = np.random.default_rng


def simulated(n: int, *, bias: float = 1.0, error: float = 0.0, noise: float = 0.0, seed: int = 0):
    """Predictions, measurements and second measurements of n networks of 1 to 10 ms."""
    rng = RNG(seed)
    true = rng.uniform(1, 10, n)
    predicted = true * bias * np.exp(rng.normal(0, error, n))
    return predicted, true * np.exp(rng.normal(0, noise, n)), list(true * np.exp(rng.normal(0, noise, n)))


def found_of(*args, **options) -> Agreement:
    found = agreement(*simulated(*args, **options), RNG(1))
    assert found is not None
    return found


def test_the_numbers_of_four_networks() -> None:
    predicted, measured = np.array([1.0, 2.08, 2.76, 4.0]), np.array([1.0, 2.0, 3.0, 4.0])
    found = agreement(predicted, measured, [1.1, None, 3.0, None], RNG(0))
    assert found is not None
    assert found.networks == 4
    assert found.mean_error == pytest.approx(0.03)
    assert found.median_error == pytest.approx(0.02)
    assert found.max_error == pytest.approx(0.08)
    assert (found.within_5_percent, found.within_10_percent) == (0.75, 1.0)
    assert found.bias == pytest.approx((1.04 * 0.92) ** 0.25 - 1)
    assert (found.repeated, found.noise_floor) == (2, pytest.approx(0.05))
    assert (found.spearman, found.kendall) == (pytest.approx(1.0), pytest.approx(1.0))


def test_the_intervals_hold_what_they_should() -> None:
    """The bootstrap interval of the mean error holds the mean error of endless networks about 19 times out of 20."""
    true_error = np.abs(np.expm1(RNG(0).normal(0, 0.03, 200_000))).mean()
    held = [
        (found := found_of(60, error=0.03, seed=seed)).mean_error_low <= true_error <= found.mean_error_high
        for seed in range(100)
    ]
    assert 88 <= sum(held) <= 99


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_latencies_are_refused(bad: float) -> None:
    good = np.array([1.0, 2.0])
    for predicted, measured, again in (
        (np.array([bad, 1.0]), good, [None, None]),
        (good, np.array([1.0, bad]), [None, None]),
        (good, good, [bad, None]),
    ):
        with pytest.raises(PredictorError, match="finite and above zero"):
            agreement(predicted, measured, again, RNG(0))


def test_no_network_is_no_agreement() -> None:
    assert agreement(np.array([]), np.array([]), [], RNG(0)) is None
    assert judge(None, None)[0] == "not judged"


def test_ranks_need_three_different_networks() -> None:
    assert rank_correlations(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == (None, None)
    assert rank_correlations(np.ones(5), np.arange(5.0)) == (None, None)
    spearman, kendall = rank_correlations(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 3.0]))
    assert (spearman, kendall) == (pytest.approx(0.8), pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("inside", "networks", "fit"),
    [(54, 60, "as promised"), (48, 60, "as promised"), (30, 60, "too few inside"), (0, 60, "too few inside")],
)
def test_coverage_of_few_calibration_networks(inside: int, networks: int, fit: str) -> None:
    found = coverage(np.arange(networks) < inside, 0.9, 24)
    assert found is not None
    assert (found.inside, found.networks, found.fit) == (inside, networks, fit)
    assert found.low <= inside / networks <= found.high


def test_many_calibration_networks_promise_more() -> None:
    inside = np.arange(60) < 48
    loose, strict = coverage(inside, 0.9, 24), coverage(inside, 0.9, 10_000)
    assert loose is not None
    assert strict is not None
    assert (loose.fit, strict.fit) == ("as promised", "too few inside")
    wide = coverage(np.ones(400, dtype=bool), 0.9, 10_000)
    assert wide is not None
    assert wide.fit == "wider than needed"
    assert coverage(np.array([], dtype=bool), 0.9, 24) is None


def test_a_good_conformal_bound_is_seldom_blamed() -> None:
    """Bounds made as they are for tables: at most one in twenty is called too narrow, though they are few networks'."""
    blamed = 0
    for seed in range(400):
        rng = RNG(seed)
        width = np.sort(np.abs(rng.normal(size=24)))[22]
        found = coverage(np.abs(rng.normal(size=60)) <= width, 0.9, 24)
        assert found is not None
        blamed += found.fit == "too few inside"
    assert blamed <= 20


def test_the_clopper_pearson_interval() -> None:
    found = coverage(np.arange(10) < 8, 0.9, 24)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.4439, abs=1e-4), pytest.approx(0.9748, abs=1e-4))


def test_noise_comes_from_what_was_measured_twice() -> None:
    _, first, second = simulated(4000, noise=0.02)
    assert noise_sd(first, second, None) == pytest.approx(0.02, rel=0.1)
    promise = Promise(24, 0.02, noise_floor=2 / np.sqrt(np.pi) * 0.02)
    assert noise_sd(first, [None] * len(first), promise) == pytest.approx(0.02)
    assert noise_sd(first, [None] * len(first), None) == 0.0


def test_errors_beyond_the_noise() -> None:
    predicted = np.array([1.0, 1.1, 1.2, 1.2])
    left = beyond_noise(predicted, np.ones(4), [1.0, 1.1, None, 1.2], 0.02)
    assert left[0] == 0
    assert left[1] == pytest.approx(1.1**0.5 - 1 - 0.04 / np.sqrt(2))
    assert left[2] == pytest.approx(0.2 - 0.04)
    # The second session shows that most of it was noise of the first.
    assert left[3] < left[2] / 2


PROMISE = Promise(24, 0.02, 0.015)


@pytest.mark.parametrize(
    ("options", "judgement"),
    [
        ({"error": 0.02, "noise": 0.01}, "holds"),
        ({"error": 0.0, "noise": 0.04}, "holds"),  # a noisy day: nothing can be predicted better than that
        ({"bias": 1.12, "error": 0.02, "noise": 0.01}, "biased"),
        ({"bias": 0.85, "error": 0.02, "noise": 0.01}, "biased"),
        ({"error": 0.03, "noise": 0.01}, "in doubt"),
        ({"error": 0.15, "noise": 0.01}, "does not hold"),
        ({"bias": 1.3, "error": 0.15, "noise": 0.01}, "does not hold"),
    ],
)
def test_verdicts(options: dict[str, float], judgement: str) -> None:
    found = found_of(60, **options)
    verdict, sentence = judge(found, PROMISE)
    assert verdict == judgement
    assert f"{found.mean_error:.1%}" in sentence
    assert ("hwnas profile --check" in sentence) == (judgement == "biased")
    assert "today's scale" not in sentence
    assert ("hwnas profile --fresh" in sentence) == (judgement in ("does not hold", "in doubt"))
    assert ("--networks 240" in sentence) == (judgement == "in doubt")


def test_a_table_is_held_to_what_it_promises() -> None:
    found = found_of(60, error=0.08)
    assert judge(found, PROMISE)[0] == "does not hold"
    assert judge(found, Promise(24, 0.07, 0.01))[0] == "holds"


def test_kinds_of_networks_that_differ_are_told_apart() -> None:
    found = found_of(60, error=0.036, seed=2)
    assert "4.5% on spread ones, 2.0% on uniform ones" in judge(found, PROMISE, {"spread": 0.045, "uniform": 0.02})[1]
    for alike in ({"spread": 0.045, "uniform": 0.04}, {"spread": 0.012, "uniform": 0.006}, {"uniform": 0.03}, {}):
        assert "ones" not in judge(found, PROMISE, alike)[1]


@pytest.mark.parametrize(("drift", "told"), [(0.12, True), (-0.095, True), (0.03, False), (None, False)])
def test_a_machine_of_another_speed_is_told_apart(drift: float | None, told: bool) -> None:
    """Measurements are relative to the anchors, so a table of a slower machine holds; only its scale is old."""
    judgement, sentence = judge(found_of(60, error=0.01), PROMISE, anchor_drift=drift)
    assert judgement == "holds"
    assert ("puts it on today's scale" in sentence) is told
    assert (f"{drift:+.1%}" in sentence) is told if drift is not None else "beside" not in sentence


def test_few_networks_are_said_to_be_few() -> None:
    assert "too few to be sure" in judge(found_of(4, error=0.01), None)[1]
    assert "too few to be sure" not in judge(found_of(60, error=0.01), None)[1]
    assert "1 unseen network," in judge(replace(found_of(4), networks=1, noise_floor=None), PROMISE)[1] + ","
