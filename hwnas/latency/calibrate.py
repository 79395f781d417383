"""From profiled block times to what the blocks cost in networks that run without the profiler.

A profiler adds to every node the time of reading its clock, and a network that runs without it is overlapped and
cached otherwise. So the profiled times are a prior, and whole networks measured without the profiler are the evidence,
of a Bayesian linear regression (Bishop 2006, section 3.3; the form with kernels, 6.2):

    latency = intercept + fusions . gamma + sum over the blocks of base_b (1 + scale + delta_b) + features_b . beta

    base_b     slope * profiled time - overhead per node * number of nodes, both least squares on the evidence
    features_b what the block's operators compute and move (`estimate.block_features`)
    fusions    what the runtime fuses and shares across the network's blocks (`fusion.py`), where that varies

with normal priors on intercept, scale, delta, beta and gamma, and relative normal noise. Their widths are those of a
small grid with the largest marginal likelihood: large networks, whose profiles are exact, stay close to an affine
correction, and networks of some microseconds a node, whose profiles are mostly clock, are learnt from the evidence. All
but the fusions is additive over blocks, so the result is again one number per block. Time cannot be negative, so the
posterior's maximum is sought where no block's is.
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

# Prior standard deviations, as fractions of a latency: of one block, of one feature's sum, of one kind of fusion, and
# of the noise.
_BLOCK_SD = (0.01, 0.03, 0.1, 0.3)
_FEATURE_SD = (0.0, 0.01, 0.03, 0.1)
_FUSION_SD = (0.0, 0.03, 0.1)
# No less noise than a network has that is measured again in another session: with less, blocks that may differ much fit
# the noise, and a search chooses those that it made too fast.
_NOISE_SD = (0.008, 0.012, 0.016, 0.024, 0.04)
_SCALE_SD = 0.3
_INTERCEPT_SD = 0.1
# A block is taken to cost at least this part of its profiled time, however much of that was clock.
_FLOOR = 0.05


@dataclass(frozen=True)
class Calibration:
    """A network takes `intercept_ms`, `block_ms` (blocks,), above zero, for each block, `fusion_ms` (f,) per fusion."""

    block_ms: FloatVector
    intercept_ms: float
    fusion_ms: FloatVector

    def predict_ms(self, counts: FloatMatrix, fusions: FloatMatrix) -> FloatVector:
        """(n, blocks) and (n, f) counts of networks -> (n,) ms."""
        return np.asarray(self.intercept_ms + counts @ self.block_ms + fusions @ self.fusion_ms)


@dataclass(frozen=True)
class _Evidence:
    """Measured networks, every column a share of the latency, so that one prior width serves all of a kind."""

    blocks: FloatMatrix  # (n, blocks)
    features: FloatMatrix  # (n, features)
    fusions: FloatMatrix  # (n, f)
    intercept: FloatVector  # (n,)


@dataclass(frozen=True)
class _Widths:
    """Prior standard deviations."""

    block: float
    feature: float
    fusion: float
    noise: float


def calibrate(
    profiled_ms: FloatVector,
    nodes: FloatVector,
    features: FloatMatrix,
    counts: FloatMatrix,
    measured_ms: FloatVector,
    fusions: FloatMatrix | None = None,
) -> Calibration:
    """Calibrate profiled block times with whole networks.

    profiled_ms, nodes: (blocks,) time and number of nodes of each block in profiled networks; features: (blocks,
    features); counts: (n, blocks) how often each block is in each measured network; measured_ms: (n,); fusions: (n, f)
    counts of `FusionCounts`. Raises PredictorError without a measured network.
    """
    if len(measured_ms) == 0:
        raise PredictorError("no whole network was measured, so profiled blocks cannot be calibrated")
    fusions = np.zeros((len(measured_ms), 0)) if fusions is None else fusions
    base = _without_overhead(profiled_ms, nodes, counts, measured_ms)
    mean_ms = measured_ms.mean()
    feature_ms = features * _per_unit(counts @ features, mean_ms)
    fusion_unit_ms = _per_unit(fusions, mean_ms)
    relative = _Evidence(
        counts * base / measured_ms[:, None],
        counts @ feature_ms / measured_ms[:, None],
        fusions * fusion_unit_ms / measured_ms[:, None],
        _INTERCEPT_SD * mean_ms / measured_ms,
    )
    widths = _most_likely(relative)
    return _most_probable(base, feature_ms, fusion_unit_ms, counts, measured_ms, relative, widths)


def _per_unit(sums: FloatMatrix, mean_ms: float) -> FloatVector:
    """(columns,) ms by which a unit of each column is scaled so that it sums to a network's latency; 0 if unseen."""
    typical = np.sqrt(np.mean(sums**2, axis=0))
    return np.asarray(np.divide(mean_ms, typical, out=np.zeros(sums.shape[1]), where=typical > 0))


def _most_probable(
    base: FloatVector,
    feature_ms: FloatMatrix,
    fusion_unit_ms: FloatVector,
    counts: FloatMatrix,
    measured_ms: FloatVector,
    relative: _Evidence,
    widths: _Widths,
) -> Calibration:
    """The posterior's maximum where no block costs less than part of its profile, and the intercept is not negative.

    One least squares problem in (blocks' times above their floor, intercept, gamma, beta and scale): a row for each
    measured network, for each block's prior, and for the priors of the rest.
    """
    floor = _FLOOR * base
    shared = np.concatenate([feature_ms * widths.feature, (base * _SCALE_SD)[:, None]], axis=1)
    fused = relative.fusions * widths.fusion
    blocks, kinds, rest = len(base), fused.shape[1], shared.shape[1]
    signed = np.concatenate([fused, np.zeros((len(counts), rest))], axis=1) / widths.noise
    prior = np.diag(1 / (widths.block * base))
    pulled = np.concatenate([np.zeros((blocks, kinds)), prior @ shared], axis=1)
    whole = np.concatenate([counts / measured_ms[:, None], relative.intercept[:, None]], axis=1) / widths.noise
    # Non-negative least squares; what may be negative (gamma, beta, scale) is the difference of two.
    design = np.block(
        [
            [whole, signed, -signed],
            [prior, np.zeros((blocks, 1)), -pulled, pulled],
            [np.zeros((1, blocks)), np.ones((1, 1)), np.zeros((1, 2 * (kinds + rest)))],
            [np.zeros((kinds + rest, blocks + 1)), np.eye(kinds + rest), -np.eye(kinds + rest)],
        ]
    )
    wanted = np.concatenate(
        [(1 - counts @ floor / measured_ms) / widths.noise, prior @ (base - floor), np.zeros(1 + kinds + rest)]
    )
    found = LinearRegression(positive=True, fit_intercept=False).fit(design, wanted).coef_
    up, down = found[blocks + 1 : blocks + 1 + kinds], found[blocks + 1 + kinds + rest :][:kinds]
    return Calibration(
        floor + found[:blocks],
        float(found[blocks]) * _INTERCEPT_SD * float(measured_ms.mean()),
        (up - down) * widths.fusion * fusion_unit_ms,
    )


def _most_likely(relative: _Evidence) -> _Widths:
    """The prior widths of blocks, features and fusions and that of the noise with the largest marginal likelihood."""
    total = relative.blocks.sum(axis=1)
    residual = 1 - total
    shared = _SCALE_SD**2 * np.outer(total, total) + np.outer(relative.intercept, relative.intercept)
    kernels = [columns @ columns.T for columns in (relative.blocks, relative.features, relative.fusions)]
    fusion_sd = _FUSION_SD if relative.fusions.any() else (0.0,)
    best, found = -np.inf, _Widths(_BLOCK_SD[0], _FEATURE_SD[0], fusion_sd[0], _NOISE_SD[0])
    for widths in itertools.starmap(_Widths, itertools.product(_BLOCK_SD, _FEATURE_SD, fusion_sd, _NOISE_SD)):
        covariance = shared + widths.noise**2 * np.eye(len(residual))
        for width, kernel in zip((widths.block, widths.feature, widths.fusion), kernels, strict=True):
            covariance += width**2 * kernel
        evidence = -0.5 * float(residual @ np.linalg.solve(covariance, residual))
        evidence -= 0.5 * float(np.linalg.slogdet(covariance)[1])
        if evidence > best:
            best, found = evidence, widths
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
