"""How well predicted latencies agree with measured ones: errors, ranks, coverage, and a verdict. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hwnas.errors import PredictorError
from hwnas.validation import Agreement, Coverage, Drawn, Fit, Judgement, Promise

FloatVector = NDArray[np.float64]

RESAMPLES = 2000
# A promise is called broken where so unlucky a draw, to one side, has less than this probability.
UNLUCKY = 0.025
# The verdict: as good as can be measured is at most this mean error, or this many times a floor or a promise.
GOOD_ERROR = 0.02
MARGIN = 1.2
# Kinds of networks whose errors differ by more than this factor are told apart.
APART = 1.5
# Anchors that moved by more than this have to be put on today's scale.
DRIFTED = 0.05
# Networks below which a verdict says how few they are.
FEW = 10


def agreement(
    predicted_ms: FloatVector, measured_ms: FloatVector, again_ms: Sequence[float | None], rng: np.random.Generator
) -> Agreement | None:
    """All (n,): predictions, measurements, and those of a second session where there are any. None for n = 0.

    Raises PredictorError unless every latency is finite and above zero.
    """
    count = len(measured_ms)
    repeats = [(first, second) for first, second in zip(measured_ms, again_ms, strict=True) if second is not None]
    for values in (predicted_ms, measured_ms, np.array(repeats)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise PredictorError(f"latencies must be finite and above zero to be compared, got {values.min()} ms")
    if count == 0:
        return None
    logs = np.log(predicted_ms / measured_ms)
    errors = np.abs(np.expm1(logs))
    drawn = rng.integers(0, count, (RESAMPLES, count))
    biases = logs[drawn].mean(axis=1)
    error_low, error_high = _interval(errors[drawn].mean(axis=1))
    bias_low, bias_high = np.expm1(_interval(biases))
    spearman, kendall = rank_correlations(predicted_ms, measured_ms)
    return Agreement(
        networks=count,
        mean_error=float(errors.mean()),
        mean_error_low=error_low,
        mean_error_high=error_high,
        median_error=float(np.median(errors)),
        max_error=float(errors.max()),
        within_5_percent=float((errors <= 0.05).mean()),
        within_10_percent=float((errors <= 0.10).mean()),
        bias=float(np.expm1(logs.mean())),
        bias_low=float(bias_low),
        bias_high=float(bias_high),
        unbiased_error=float(np.abs(np.expm1(logs - logs.mean())).mean()),
        spearman=spearman,
        kendall=kendall,
        repeated=len(repeats),
        noise_floor=float(np.mean([abs(second / first - 1) for first, second in repeats])) if repeats else None,
    )


def _interval(resampled: FloatVector) -> tuple[float, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def rank_correlations(predicted_ms: FloatVector, measured_ms: FloatVector) -> tuple[float | None, float | None]:
    """Spearman's rho and Kendall's tau-b; None where fewer than three networks, or all alike, have no ranks."""
    if len(measured_ms) < 3 or np.ptp(predicted_ms) == 0 or np.ptp(measured_ms) == 0:
        return None, None
    return (
        float(stats.spearmanr(predicted_ms, measured_ms).statistic),
        float(stats.kendalltau(predicted_ms, measured_ms).statistic),
    )


def coverage(inside: NDArray[np.bool_], nominal: float, calibrated: int) -> Coverage | None:
    """(n,) whether each measurement kept its bound, against the fraction promised by `calibrated` networks.

    A split-conformal bound from m networks holds a Beta(k, m + 1 - k) fraction of all others, k being the rank that
    was taken (Vovk 2012, proposition 2b), so what is held of n is beta-binomial: wider than binomial, for m is small.
    None for n = 0.
    """
    count, held = len(inside), int(inside.sum())
    if count == 0:
        return None
    low = float(stats.beta.ppf(0.025, held, count - held + 1)) if held else 0.0
    high = float(stats.beta.ppf(0.975, held + 1, count - held)) if held < count else 1.0
    rank = math.ceil(round((calibrated + 1) * nominal, 9))
    law = (
        stats.betabinom(count, rank, calibrated + 1 - rank)
        if 0 < rank <= calibrated
        else stats.binom(count, nominal)  # a bound of another making
    )
    fit: Fit = "as promised"
    if law.cdf(held) < UNLUCKY:
        fit = "too few inside"
    elif law.sf(held - 1) < UNLUCKY:
        fit = "wider than needed"
    return Coverage(nominal, held, count, calibrated, low, high, fit)


def noise_sd(measured_ms: FloatVector, again_ms: Sequence[float | None], promise: Promise | None) -> float:
    """Standard deviation of the log of one measurement: from networks measured twice, else from the table's own."""
    twice = [
        math.log(second / first) for first, second in zip(measured_ms, again_ms, strict=True) if second is not None
    ]
    if len(twice) >= 5:
        return 1.4826 * float(np.median(np.abs(twice))) / math.sqrt(2)
    # The mean absolute difference of two normal errors of deviation s is 2 s / sqrt(pi).
    return promise.noise_floor * math.sqrt(math.pi) / 2 if promise else 0.0


def beyond_noise(
    predicted_ms: FloatVector, measured_ms: FloatVector, again_ms: Sequence[float | None], sd: float
) -> FloatVector:
    """(n,) what is left of |predicted / measured - 1| after two standard deviations of noise, at least 0.

    A network measured twice is judged by the mean of both, which has less noise.
    """
    left = []
    for predicted, first, second in zip(predicted_ms, measured_ms, again_ms, strict=True):
        logs = [math.log(predicted / ms) for ms in (first, second) if ms is not None]
        left.append(max(0.0, abs(math.expm1(float(np.mean(logs)))) - 2 * sd / math.sqrt(len(logs))))
    return np.array(left)


def judge(
    found: Agreement | None,
    promise: Promise | None,
    by_draw: Mapping[Drawn, float] | None = None,
    anchor_drift: float | None = None,
) -> tuple[Judgement, str]:
    """The verdict and its sentences; `by_draw` is the mean error of each kind of networks.

    A table holds if its mean error is at most 2%, or 1.2 times today's noise floor, or what it promises of itself. It
    is biased if that is so once a bias that is beyond doubt is taken out, and in doubt where chance could be to blame.
    All of it is relative to the anchors: that the whole machine runs at another speed (`anchor_drift`) is said apart.
    """
    if found is None:
        return "not judged", "The table could not be judged: no network was measured."
    floors = [floor for floor in (found.noise_floor, promise.mean_error if promise else None) if floor is not None]
    allowed = max([GOOD_ERROR, *(MARGIN * floor for floor in floors)])
    numbers = _numbers(found, promise, by_draw or {}, allowed)
    biased = found.bias_low > 0 or found.bias_high < 0
    judgement: Judgement
    if found.mean_error <= allowed:
        judgement, sentence = "holds", f"The table holds: {numbers}" + (f", bias {found.bias:+.1%}." if biased else ".")
    elif biased and found.unbiased_error <= allowed:
        judgement, sentence = (
            "biased",
            f"The table is biased by {found.bias:+.1%}: {numbers}; {found.unbiased_error:.1%} without the bias. See "
            "whether its anchors hold: hwnas profile --check RECIPE; if they do, profile anew: --fresh.",
        )
    elif found.mean_error_low <= allowed:
        judgement, sentence = (
            "in doubt",
            f"The table is in doubt: {numbers}, where {allowed:.1%} would be good. Measure more: --networks "
            f"{4 * found.networks}; or profile anew: hwnas profile --fresh RECIPE.",
        )
    else:
        judgement, sentence = (
            "does not hold",
            f"The table does not hold: {numbers}; {found.unbiased_error:.1%} without its bias of {found.bias:+.1%}. "
            "Profile anew: hwnas profile --fresh RECIPE.",
        )
    if anchor_drift is not None and abs(anchor_drift) > DRIFTED:
        sentence += (
            f" The anchors take {anchor_drift:+.1%} beside the table's time: hwnas profile --check RECIPE puts it on "
            "today's scale."
        )
    return judgement, sentence


def _numbers(found: Agreement, promise: Promise | None, kinds: Mapping[Drawn, float], allowed: float) -> str:
    worst, best = max(kinds.values(), default=0.0), min(kinds.values(), default=0.0)
    apart = worst > allowed and worst > APART * best
    return (
        f"mean error {found.mean_error:.1%} ({found.mean_error_low:.1%} to {found.mean_error_high:.1%}) on "
        f"{found.networks} unseen network{'s' if found.networks > 1 else ''}"
        + (f", too few to be sure (from {FEW} on)" if found.networks < FEW else "")
        + (f" ({', '.join(f'{error:.1%} on {kind} ones' for kind, error in kinds.items())})" if apart else "")
        + ("" if found.noise_floor is None else f", noise floor {found.noise_floor:.1%}")
        + (f", promised {promise.mean_error:.1%}" if promise else "")
    )
