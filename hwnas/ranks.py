"""Ranks: what is left of numbers whose scale means nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) -> (n,) ranks from 1 (lowest) to n; equal values share the mean of theirs, NaN are the lowest."""
    _, inverse, counts = np.unique(np.where(np.isnan(values), -np.inf, values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def places(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) -> (n,) places from 1 for the highest; equal values share the first of theirs, NaN come last."""
    _, inverse, counts = np.unique(np.where(np.isnan(values), np.inf, -values), return_inverse=True, return_counts=True)
    first: NDArray[np.int64] = (np.cumsum(counts) - counts + 1)[inverse]
    return first
