"""Which networks to measure on a new device: those after which the rest of the pool is known best.

Greedy: each next network lowers the process's mean variance over the pool the most (sequential design by active
learning, Cohn 1996; the variance does not depend on what is measured, so all k can be chosen before any is).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwnas.errors import PredictorError
from hwnas.latency.pool import check_rows
from hwnas.latency.prior import TransferPrior
from hwnas.latency.relatedness import covariances, variances
from hwnas.space import IntMatrix

# Networks among which the next is sought, and those whose variance is lowered.
_CANDIDATES, _REFERENCE = 2000, 400


def choose_shots(prior: TransferPrior, k: int, rng: np.random.Generator, measured: Sequence[int] = ()) -> IntMatrix:
    """(k,) rows of the prior's pool to measure next, most telling first, given the rows `measured` already.

    Raises PredictorError if the pool has fewer rows left.
    """
    pool, done = prior.pool, np.asarray(measured, dtype=np.int64 if len(measured) == 0 else None)
    check_rows(pool, done)
    done = np.unique(done)
    if not 1 <= k <= len(pool) - len(done):
        raise PredictorError(f"{len(pool) - len(done)} networks of the pool are not measured, asked to choose {k}")
    free = np.setdiff1d(np.arange(len(pool)), done)
    candidates = rng.choice(free, min(max(_CANDIDATES, k), len(free)), replace=False)
    candidates = np.concatenate([done, candidates])
    reference = rng.choice(len(pool), min(_REFERENCE, len(pool)), replace=False)
    weights = np.exp(np.average(prior.weights, axis=0, weights=prior.chances))
    noise = weights[-1] * prior.variance
    here, there = prior.features(pool.take(candidates)), prior.features(pool.take(reference))

    cross = np.tensordot(weights[:-1], covariances(here, there, prior.slots, prior.variance), 1)
    variance = weights[:-1] @ variances(here, prior.slots, prior.variance)
    known = np.zeros((len(candidates), len(done) + k))
    taken = np.zeros(len(candidates), dtype=bool)
    order: list[int] = []
    for step in range(len(done) + k):
        gain = np.where(taken, -1.0, (cross**2).sum(axis=1) / (variance + noise))
        chosen = step if step < len(done) else int(np.argmax(gain))
        one = here.rows(np.array([chosen]))
        column = np.tensordot(weights[:-1], covariances(here, one, prior.slots, prior.variance), 1)[:, 0]
        column = column - known[:, :step] @ known[chosen, :step]
        # A step of Cholesky's factorisation: what this network tells about all others.
        column = column / np.sqrt(max(float(column[chosen]), 0.0) + noise)
        told = cross[chosen] / np.sqrt(max(float(variance[chosen]), 0.0) + noise)
        known[:, step] = column
        cross = cross - np.outer(column, told)
        variance = np.maximum(variance - column**2, 0.0)
        taken[chosen] = True
        order.append(chosen)
    return np.asarray(candidates[order[len(done) :]])
