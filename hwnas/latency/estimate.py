"""Estimated rows for blocks that no profiled network held: a regression on what a block computes and moves.

Every block has the same physical features (per kind of operator: count, multiply-accumulates, bytes moved), all of
which can only add time, so a non-negative linear model of the measured rows extrapolates sanely. A Gaussian process on
the log of its relative error then corrects it near measured blocks.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from hwnas.blocks import Block
from hwnas.errors import PredictorError
from hwnas.latency.index import BlockIndex
from hwnas.trace import Op
from hwprof.table import Row

FloatMatrix = NDArray[np.float64]
FloatVector = NDArray[np.float64]

# Length scale (in standard deviations of the log features), signal and noise (in log latency) of the correction.
_KERNEL = 0.1**2 * RBF(2.0) + WhiteKernel(0.03**2)

# Of the median row. Below it a block is as good as free (fused into another), and its relative error means nothing.
_SMALLEST = 0.01


def block_features(blocks: tuple[Block, ...]) -> FloatMatrix:
    """(blocks, features): per kind of operator its number, MACs and elements read and written (in millions)."""
    table: list[dict[str, float]] = []
    for block in blocks:
        features: dict[str, float] = defaultdict(float)
        for op in block.trace.ops:
            kind = _kind(op)
            moved = sum(np.prod(shape) for shape in (*op.input_shapes, op.output_shape))
            weights = sum(parameter.numel() for parameter in op.module.parameters()) if op.module else 0
            features[f"{kind} count"] += 1
            features[f"{kind} moved"] += float(moved + weights) * 1e-6
            if op.macs:
                features[f"{kind} macs"] += op.macs * 1e-6
        table.append(features)
    names = sorted({name for features in table for name in features})
    return np.array([[features[name] for name in names] for features in table])


def with_unseen_operators(features: FloatMatrix, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(blocks,) the blocks with an operator that no `known` (blocks,) block has, given (blocks, features)."""
    unseen = ~(features[known] > 0).any(axis=0)
    return np.asarray((features[:, unseen] > 0).any(axis=1))


def _kind(op: Op) -> str:
    groups = getattr(op.module, "groups", 1)
    kernel = getattr(op.module, "kernel_size", (1, 1))
    # Kernels differ between sizes in runtimes (a 3x3 may use another algorithm than a 5x5).
    return f"{op.kind} {'depthwise' if groups > 1 else 'dense'} {kernel}" if op.kind == "conv" else op.kind


def estimate_rows(index: BlockIndex, rows: dict[str, Row]) -> dict[str, Row]:
    """Rows, marked as estimated, for the blocks of the index that are not in `rows`. Raises what `estimate` raises."""
    estimated, spread = estimate(index, {key: row.ms for key, row in rows.items()})
    return {key: Row(ms, spread, 0, "estimated") for key, ms in estimated.items()}


def estimate(index: BlockIndex, known: dict[str, float]) -> tuple[dict[str, float], float]:
    """Values above zero for the blocks of the index that are not in `known`, and the relative spread of the errors.

    Raises PredictorError if a missing block holds an operator that no known block holds: its cost cannot be guessed.
    """
    measured = np.array([key in known for key in index.keys])
    if measured.all():
        return {}, 0.0
    features = block_features(index.blocks)
    missing = [key for key in index.keys if key not in known]
    foreign = np.flatnonzero(with_unseen_operators(features, measured))
    if len(foreign):
        raise PredictorError(
            f"no profiled network holds an operator of {index.keys[foreign[0]]}, so its latency cannot be estimated; "
            "profile the covering set (profile.networks = 0) or more networks"
        )
    values = np.array([known[key] for key in index.keys if key in known])
    estimated, spread = _regress(features[measured], values, features[~measured])
    return dict(zip(missing, map(float, estimated), strict=True)), spread


def _regress(features: FloatMatrix, ms: FloatVector, wanted: FloatMatrix) -> tuple[FloatVector, float]:
    """Predicted ms of the `wanted` features, and the relative spread of the model's errors."""
    ms = np.maximum(ms, _SMALLEST * np.median(ms))
    # Weighting by 1/ms makes least squares minimise the relative error.
    linear = LinearRegression(positive=True, fit_intercept=False).fit(features / ms[:, None], np.ones(len(ms)))
    floor = 0.1 * float(ms.min())
    known, unknown = (np.maximum(linear.predict(matrix), floor) for matrix in (features, wanted))
    scaler = StandardScaler().fit(_log(features))
    process = GaussianProcessRegressor(_KERNEL, optimizer=None, normalize_y=False)
    residual = np.log(ms / known)
    process.fit(scaler.transform(_log(features)), residual)
    correction = process.predict(scaler.transform(_log(wanted)))
    return unknown * np.exp(correction), float(min(np.std(residual), 1.0))


def _log(features: FloatMatrix) -> FloatMatrix:
    return np.log1p(features * 1e3)
