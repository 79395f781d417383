"""The latency of a whole space on a new device from a few measured networks and what other devices need for the space.

Where only totals can be read (somebody's phone, a service), no table of blocks can be built. But devices resemble each
other. A Gaussian process (`relatedness.py`) says how; what to expect is learnt from the sources (`prior.py`), and the k
measurements decide (`posterior.py`).

The interval is that of the process, stretched by how far off such intervals were: on source devices treated as
targets with the same k networks, and on the measured networks each left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hwnas.errors import PredictorError
from hwnas.latency.features import FloatVector
from hwnas.latency.pool import Pool, check_rows
from hwnas.latency.posterior import Posterior, posterior_of
from hwnas.latency.prior import TransferPrior, learn_prior, nearest_relatives
from hwnas.latency.relatedness import left_out
from hwnas.space import IntMatrix

__all__ = ["TransferModel", "TransferPrior", "fit_transfer", "learn_prior"]

# Networks on which intervals are tried, and sources tried for them.
_TRY, _TRIED_SOURCES = 200, 8
# How many measured networks the trials on sources, and the t distribution before any trial, count for.
_SOURCE_COUNT, _PRIOR_COUNT = 10.0, 5.0
_CHUNK = 4096


@dataclass(frozen=True)
class TransferModel:
    """Latency of one device: `rows` of the prior's pool were measured. Every prediction is above zero.

    `errors` and their `shares` are the distribution of (measured - predicted) / standard deviation on the scale.
    """

    prior: TransferPrior
    rows: IntMatrix
    posterior: Posterior
    errors: FloatVector
    shares: FloatVector

    def predict_ms(self, pool: Pool | None = None) -> FloatVector:
        """(n,) median ms of the prior's pool, or of any architectures whose source latencies are given."""
        return self.posterior.scale.ms(self._values(pool)[0])

    def interval_ms(self, confidence: float = 0.9, pool: Pool | None = None) -> tuple[FloatVector, FloatVector]:
        """Two (n,): bounds in ms that hold one measurement with this confidence."""
        width = _quantile(np.abs(self.errors), self.shares, confidence)
        mean, sd = self._values(pool)
        return self.posterior.scale.ms(mean - width * sd), self.posterior.scale.ms(mean + width * sd)

    def upper_ms(self, confidence: float = 0.95, pool: Pool | None = None) -> FloatVector:
        """(n,) one-sided: a measurement stays below with this confidence."""
        mean, sd = self._values(pool)
        return self.posterior.scale.ms(mean + _quantile(self.errors, self.shares, confidence) * sd)

    def _values(self, pool: Pool | None) -> tuple[FloatVector, FloatVector]:
        pool, found = pool or self.prior.pool, []
        for first in range(0, len(pool), _CHUNK):
            chunk = pool.take(np.arange(first, min(first + _CHUNK, len(pool))))
            found.append(self.posterior.values(self.prior.features(chunk)))
        mean, sd = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return mean, sd


def fit_transfer(
    prior: TransferPrior, rows: Sequence[int] | IntMatrix, measured_ms: Sequence[float] | FloatVector
) -> TransferModel:
    """Fit a new device: rows (k,) of the prior's pool that were measured on it, measured_ms (k,).

    A row measured twice is given twice. Raises PredictorError on rows outside the pool and on a latency that is not
    above zero.
    """
    rows, measured = np.asarray(rows), np.asarray(measured_ms, dtype=np.float64)
    check_rows(prior.pool, rows)
    if rows.shape != measured.shape or len(rows) == 0:
        raise PredictorError(
            f"a fit needs one latency for each measured row and at least one, got {measured.shape} for {rows.shape}"
        )
    bad = ~(np.isfinite(measured) & (measured > 0))
    if bad.any():
        raise PredictorError(f"row {rows[bad][0]} was measured as {measured[bad][0]:g} ms; leave it out or repeat it")
    posterior = posterior_of(prior, prior.features(prior.pool.take(rows)), measured)
    errors, shares = _tried(prior, rows, posterior)
    return TransferModel(prior, rows, posterior, errors, shares)


def _tried(prior: TransferPrior, rows: IntMatrix, posterior: Posterior) -> tuple[FloatVector, FloatVector]:
    """Errors in standard deviations and their shares: of t, of sources treated as targets, of values left out."""
    rng = np.random.default_rng(prior.seed)
    count = 400
    errors = [stats.t.ppf((np.arange(count) + 0.5) / count, df=4)]
    shares = [np.full(count, _PRIOR_COUNT / count)]
    pool = prior.pool
    sources = len(pool.source_names)
    targets = rng.permutation(sources)[:_TRIED_SOURCES] if sources > 1 else np.empty(0, dtype=np.int64)
    trusted = prior.encoder.trust[targets]
    held = rng.choice(len(pool), min(_TRY, len(pool)), replace=False)
    known, asked = prior.features(pool.take(rows)), prior.features(pool.take(held))
    for target in targets:
        # The worst case that the weights were learnt from: what resembles the target most may be nothing near it.
        hidden = nearest_relatives(prior.encoder.alike[target], int(target))[-1]
        trial = posterior_of(prior, known.without(hidden), pool.source_ms[rows, target])
        mean, sd = trial.values(asked.without(hidden))
        errors.append((trial.scale(pool.source_ms[held, target]) - mean) / sd)
        shares.append(np.full(len(held), _SOURCE_COUNT * prior.encoder.trust[target] / trusted.sum() / len(held)))
    if len(rows) > 2:
        error, spread = left_out(posterior.hypotheses[0].evidence, posterior.hypotheses[0].weights)
        # Two values are spent on level and noise, so that errors on the others are smaller than to come.
        errors.append(error / np.sqrt(spread * (len(rows) - 2) / len(rows)))
        shares.append(np.full(len(rows), (len(rows) - 2) / len(rows)))
    total = np.concatenate(shares)
    return np.concatenate(errors), total / total.sum()


def _quantile(values: FloatVector, shares: FloatVector, confidence: float) -> float:
    if not 0 < confidence < 1:
        raise PredictorError(f"confidence must lie between 0 and 1, got {confidence}")
    order = np.argsort(values)
    place = int(np.searchsorted(np.cumsum(shares[order]), confidence))
    return float(values[order][min(place, len(values) - 1)])
