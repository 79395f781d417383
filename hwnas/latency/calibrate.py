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
additive over blocks, so the result is again one number per block.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    intercept = measured_ms.mean() / measured_ms
    for intercept_sd in (_INTERCEPT_SD, 0.0):
        weights, block_sd, feature_sd = _fit(blocks, moved, intercept * intercept_sd)
        intercept_ms = intercept_sd**2 * float(intercept @ weights) * float(measured_ms.mean())
        if intercept_ms >= 0:  # a network cannot give time back: then there is no fixed cost to be seen
            break
    scale = _SCALE_SD**2 * float(blocks.sum(axis=1) @ weights)
    delta = block_sd**2 * (blocks.T @ weights)
    beta = feature_sd**2 * (moved.T @ weights)
    return Calibration(np.maximum(base * (1 + scale + delta) + scaled @ beta, _FLOOR * base), intercept_ms)


def _fit(blocks: FloatMatrix, moved: FloatMatrix, intercept: FloatVector) -> tuple[FloatVector, float, float]:
    """The dual weights (n,) of the posterior mean, and the widths for blocks and features of the largest evidence."""
    total = blocks.sum(axis=1)
    residual = 1 - total
    shared = _SCALE_SD**2 * np.outer(total, total) + np.outer(intercept, intercept)
    kernels = blocks @ blocks.T, moved @ moved.T
    best, found = -np.inf, (residual, 0.0, 0.0)
    for block, feature, noise in itertools.product(_BLOCK_SD, _FEATURE_SD, _NOISE_SD):
        covariance = shared + block**2 * kernels[0] + feature**2 * kernels[1] + noise**2 * np.eye(len(residual))
        weights = np.linalg.solve(covariance, residual)
        evidence = -0.5 * float(residual @ weights) - 0.5 * float(np.linalg.slogdet(covariance)[1])
        if evidence > best:
            best, found = evidence, (weights, block, feature)
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
