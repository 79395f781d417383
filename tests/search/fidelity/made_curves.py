"""Learning curves made up for tests: what is known of them is a latency; the learned objective is an accuracy."""

from __future__ import annotations

import numpy as np

from hwnas.search.fidelity.stopper import Training
from hwnas.search.problem import Objective

ACCURACY = Objective("accuracy", "%", "maximize")
LATENCY = Objective("latency", "ms", "minimize")
BOTH = (ACCURACY, LATENCY)


def training(number, latency, *curve, finished=False, features=()):
    return Training(number, {"latency": latency}, tuple(curve), finished, features)


def saturating(n, epochs, seed, noise=0.3):
    """Curves that keep their order, but for noise: larger networks are slower and end higher."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        latency = rng.uniform(1, 5)
        top = 60 + 5 * latency + rng.normal(0, 5)
        curve = top * (1 - 0.6 * np.exp(-np.arange(1, epochs + 1) / 3)) + rng.normal(0, noise, epochs)
        found.append(training(number, latency, *curve.tolist(), finished=True))
    return found


def crossing(n, epochs, seed, noise=0.3):
    """Curves that cross: what ends high learns late."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        top = rng.uniform(60, 90)
        pace = 1 + 8 * (top - 60) / 30 * rng.uniform(0.8, 1.2)
        rise = 1 - np.exp(-np.arange(1, epochs + 1) / pace)
        curve = top * rise / rise[-1] + rng.normal(0, noise, epochs)
        found.append(training(number, rng.uniform(1, 5), *curve.tolist(), finished=True))
    return found
