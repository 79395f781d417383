"""From profiled block times to what the blocks cost in networks that run without the profiler.

A profiler adds to every node the time of reading its clock, and a network that runs without it is overlapped and
cached otherwise. So the profiled times are a prior, and whole networks measured without the profiler are the evidence,
of a Bayesian linear regression (Bishop 2006, section 3.3; the form with kernels, 6.2):

    latency = intercept + sum over the blocks of base_b (1 + scale + delta_b) + features_b . beta + noise

    base_b     slope * profiled time - overhead per node * number of nodes, both least squares on the evidence
    features_b what the block's operators compute and move (`estimate.block_features`)

with normal priors on intercept, scale, delta and beta, and relative noise. Their widths are those of a small grid with
the largest marginal likelihood: large networks, whose profiles are exact, stay close to an affine correction, and
networks of some microseconds a node, whose profiles are mostly clock, are learnt from the evidence. All of it is
additive over blocks, so the result is again one number per block. Time cannot be negative, so the posterior's maximum
is sought where no block's is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

from hwnas.errors import PredictorError

FloatVector = NDArray[np.float64]
FloatMatrix = NDArray[np.float64]

# Prior standard deviations, as fractions of a latency: of one block, of one feature's sum, and of the noise.
_BLOCK_SD = (0.01, 0.03, 0.1, 0.3)
_FEATURE_SD = (0.0, 0.01, 0.03, 0.1)
_NOISE_SD = (0.004, 0.008, 0.016, 0.04)
_SCALE_SD = 0.3
_INTERCEPT_SD = 0.1
# A block is taken to cost at least this part of its profiled time, however much of that was clock.
_FLOOR = 0.05


@dataclass(frozen=True)
class Calibration:
    """A network takes `intercept_ms` and, for each of its blocks, `block_ms` (blocks,), all above zero."""

    block_ms: FloatVector
    intercept_ms: float


def calibrate(
    profiled_ms: FloatVector, nodes: FloatVector, features: FloatMatrix, counts: FloatMatrix, measured_ms: FloatVector
) -> Calibration:
    """Calibrate profiled block times with whole networks.

    profiled_ms, nodes: (blocks,) time and number of nodes of each block in profiled networks; features: (blocks,
    features); counts: (n, blocks) how often each block is in each measured network; measured_ms: (n,). Raises
    PredictorError without a measured network.
    """
    if len(measured_ms) == 0:
        raise PredictorError("no whole network was measured, so profiled blocks cannot be calibrated")
    base = _without_overhead(profiled_ms, nodes, counts, measured_ms)
    # Every column is a share of the latency, so one prior width serves all of a kind.
    blocks = counts * base / measured_ms[:, None]
    mean_sums = np.maximum((counts @ features).mean(axis=0), 1e-12)
    scaled = features / mean_sums * measured_ms.mean()
    scaled[:, ~(counts @ features).any(axis=0)] = 0.0
    moved = counts @ scaled / measured_ms[:, None]
    widths = _widths(blocks, moved, _INTERCEPT_SD * measured_ms.mean() / measured_ms)
    return _most_probable(base, scaled, counts, measured_ms, *widths)


def _most_probable(
    base: FloatVector,
    scaled: FloatMatrix,
    counts: FloatMatrix,
    measured_ms: FloatVector,
    block_sd: float,
    feature_sd: float,
    noise_sd: float,
) -> Calibration:
    """The posterior's maximum where no block costs less than part of its profile, and the intercept is not negative.

    One least squares problem in (blocks' times above their floor, intercept, beta, scale): a row for each measured
    network, for each block's prior, and for the priors of the rest.
    """
    floor = _FLOOR * base
    shared = np.concatenate([scaled * feature_sd, (base * _SCALE_SD)[:, None]], axis=1)
    intercept_ms = _INTERCEPT_SD * measured_ms.mean()
    evidence = (
        np.concatenate([counts, np.full((len(counts), 1), intercept_ms)], axis=1) / measured_ms[:, None] / noise_sd
    )
    prior = np.diag(1 / (block_sd * base))
    rest = shared.shape[1]
    design = np.block(
        [
            [evidence, np.zeros((len(counts), 2 * rest))],
            [prior, np.zeros((len(base), 1)), -prior @ shared, prior @ shared],
            [np.zeros((1, len(base))), np.ones((1, 1)), np.zeros((1, 2 * rest))],
            [np.zeros((rest, len(base) + 1)), np.eye(rest), -np.eye(rest)],
        ]
    )
    wanted = np.concatenate([(1 - counts @ floor / measured_ms) / noise_sd, prior @ (base - floor), np.zeros(1 + rest)])
    # Non-negative least squares; what may be negative (beta, scale) is the difference of two.
    found = LinearRegression(positive=True, fit_intercept=False).fit(design, wanted).coef_
    return Calibration(floor + found[: len(base)], float(found[len(base)]) * intercept_ms)


def _widths(blocks: FloatMatrix, moved: FloatMatrix, intercept: FloatVector) -> tuple[float, float, float]:
    """The prior widths of blocks and features and that of the noise with the largest marginal likelihood."""
    total = blocks.sum(axis=1)
    residual = 1 - total
    shared = _SCALE_SD**2 * np.outer(total, total) + np.outer(intercept, intercept)
    kernels = blocks @ blocks.T, moved @ moved.T
    best, found = -np.inf, (_BLOCK_SD[0], _FEATURE_SD[0], _NOISE_SD[0])
    for block, feature, noise in itertools.product(_BLOCK_SD, _FEATURE_SD, _NOISE_SD):
        covariance = shared + block**2 * kernels[0] + feature**2 * kernels[1] + noise**2 * np.eye(len(residual))
        evidence = -0.5 * float(residual @ np.linalg.solve(covariance, residual))
        evidence -= 0.5 * float(np.linalg.slogdet(covariance)[1])
        if evidence > best:
            best, found = evidence, (block, feature, noise)
    return found


def _without_overhead(
    profiled_ms: FloatVector, nodes: FloatVector, counts: FloatMatrix, measured_ms: FloatVector
) -> FloatVector:
    """(blocks,) slope * profiled - overhead * nodes, above zero; least squares of the networks' relative error."""
    design = np.stack([counts @ profiled_ms, counts @ nodes], axis=1) / measured_ms[:, None]
    slope, overhead = np.linalg.lstsq(design, np.ones(len(measured_ms)), rcond=None)[0]
    if slope <= 0 or overhead > 0 or len(measured_ms) < 4:
        # A clock does not give time back: then only the slope is believed.
        overhead = 0.0
        slope = float(design[:, 0].sum() / (design[:, 0] @ design[:, 0]))
    base: FloatVector = np.maximum(slope * profiled_ms + overhead * nodes, _FLOOR * slope * profiled_ms)
    return base
