"""FLOPs regression: latency as a linear function of what a network computes, fitted on whole networks."""

from __future__ import annotations

import numpy as np

from baselines.session import Baseline, Context, FloatMatrix, fit_networks, linear_fit
from hwnas.run import Run
from hwnas.space import IntMatrix


def network_features(run: Run, archs: IntMatrix) -> FloatMatrix:
    """(n, slots) canonical -> (n, 3): MACs, parameters and number of blocks."""
    blocks = run.index.blocks
    values = np.array([[block.macs, block.params, 1.0] for block in blocks])
    return np.asarray(run.index.counts(archs) @ values)


def macs(run: Run, archs: IntMatrix, context: Context) -> list[Baseline]:
    """Affine fits on the networks that calibrated the table: on MACs alone, and on parameters and depth as well."""
    known, ms = fit_networks(run)
    features, wanted = network_features(run, known), network_features(run, archs)
    seconds = len(ms) * context.network_seconds
    return [
        Baseline("affine fit on MACs", linear_fit(features[:, :1], ms, wanted[:, :1]), seconds),
        Baseline("affine fit on MACs, parameters, blocks", linear_fit(features, ms, wanted), seconds),
    ]
