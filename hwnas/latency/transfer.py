"""The latency of a whole space on a new device from a few measured networks and what other devices need for the space.

Where only totals can be read (somebody's phone, a service), no table of blocks can be built. But devices resemble each
other. A Gaussian process (`relatedness.py`) says how; its weights are learnt by treating each source device as if it
were the target, once with all others known and again with its nearest relatives hidden, because nobody knows whether
the target has a relative among the sources. These weights are candidates, of two hypotheses: the device follows the
mean of the sources, or one of them. The k measurements decide between all by their marginal likelihood, and move the
best where they say more. Noise is Student's t, as phones are interrupted.

The interval is that of the process, stretched by how far off such intervals were: on source devices treated as
targets with the same k networks, and on the measured networks each left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg, stats

from hwnas.errors import PredictorError
from hwnas.latency.pool import Pool, check_rows
from hwnas.latency.relatedness import (
    WEIGHT_MEAN,
    WEIGHT_SD,
    Encoder,
    Evidence,
    Features,
    FloatMatrix,
    FloatVector,
    covariances,
    encoder_of,
    inflated,
    left_out,
    likeness,
    most_probable,
    variances,
)
from hwnas.space import IntMatrix

# Nearest relatives hidden from a source that is treated as the target, as parts of the other sources.
_HIDDEN = (0.0, 0.25, 0.5)
# Networks by which a source tells its weights, those on which intervals are tried, and sources tried for intervals.
_LEARN, _TRY, _TRIED_SOURCES = 100, 200, 8
# How many measured networks the trials on sources, and the t distribution before any trial, count for.
_SOURCE_COUNT, _PRIOR_COUNT = 10.0, 5.0
# The spread of log latency that is expected where there is no source to show it.
_USUAL_VARIANCE = 0.1
_CHUNK = 4096


@dataclass(frozen=True)
class TransferPrior:
    """What the source devices say about a device never seen.

    `weights` (candidates, parts + 1), see `relatedness.py`, of a device that follows the mean of the sources
    and their `chances` (candidates,),
    `relative_weights` (candidates, parts + 1) of one that follows a single source,
    and `relative_chance` how often that says more. `seed` decides which networks intervals are tried on, so that a fit
    is a function of its arguments.
    """

    pool: Pool
    encoder: Encoder
    variance: float
    weights: FloatMatrix
    chances: FloatVector
    relative_weights: FloatMatrix
    relative_chance: float
    seed: int

    @property
    def slots(self) -> int:
        """Number of slots of the space."""
        return int(self.pool.archs.shape[1])

    def features(self, pool: Pool) -> Features:
        """The features of architectures, of this pool or another with the same slots and source devices."""
        if not np.array_equal(pool.options, self.pool.options) or pool.source_names != self.pool.source_names:
            raise PredictorError(
                f"the prior was learnt on options {list(self.pool.options)} and sources {self.pool.source_names}, "
                f"asked about options {list(pool.options)} and sources {pool.source_names}; give the same"
            )
        return self.encoder(pool.archs, pool.source_ms)


def learn_prior(pool: Pool, rng: np.random.Generator) -> TransferPrior:
    """Learn from the source devices of a pool how a device may differ from them. Seconds; once for any target."""
    encoder = encoder_of(pool.archs, np.asarray(pool.options), pool.source_ms)
    spread = np.log(pool.source_ms).var(axis=0)
    variance = max(float(np.average(spread, weights=encoder.trust)), 1e-6) if len(spread) else _USUAL_VARIANCE
    start, seed = WEIGHT_MEAN[None], int(rng.integers(2**31))
    prior = TransferPrior(pool, encoder, variance, start, np.ones(1), start, 0.5, seed)
    found: list[FloatVector] = []
    chances: list[float] = []
    relative_wins: list[bool] = []
    votes: list[float] = []
    relative: defaultdict[int, list[FloatVector]] = defaultdict(list)
    shares: defaultdict[int, float] = defaultdict(float)
    alike = likeness(pool.source_ms)
    for target in range(len(pool.source_names)):
        for hidden in _relatives(alike[target], target):
            rows = rng.choice(len(pool), min(_LEARN, len(pool)), replace=False)
            known, measured = prior.features(pool.take(rows)), pool.source_ms[rows, target]
            mean_evidence, _ = _evidence(prior, known.without(hidden), measured)
            found.append(most_probable(mean_evidence, WEIGHT_MEAN, WEIGHT_SD, WEIGHT_MEAN))
            # What a device that resembles none teaches about devices is as little as what it tells of the next.
            chances.append(float(encoder.trust[target]))
            visible = np.setdiff1d(np.arange(len(pool.source_names)), hidden)
            if len(visible) > 1:
                nearest = replace(known.without(hidden), centre=int(np.argmax(alike[target, visible])))
                evidence, _ = _evidence(prior, nearest, measured)
                weights = most_probable(evidence, WEIGHT_MEAN, WEIGHT_SD, WEIGHT_MEAN)
                relative_wins.append(evidence.factor(weights)[0] > mean_evidence.factor(found[-1])[0])
                votes.append(float(encoder.trust[target]))
                relative[len(hidden)].append(weights * encoder.trust[target])
                shares[len(hidden)] += encoder.trust[target]
    if not found:
        return prior
    # One candidate for each closeness of the relative, as each is tried with every source.
    levels = [np.sum(level, axis=0) / shares[hidden] for hidden, level in relative.items()]
    return replace(
        prior,
        weights=np.array(found),
        chances=np.array(chances) / np.sum(chances),
        relative_weights=np.array(levels or [WEIGHT_MEAN]),
        # One win and one loss more than seen, so that neither is ruled out.
        relative_chance=(1 + float(np.dot(relative_wins, votes))) / (2 + sum(votes)),
    )


@dataclass(frozen=True)
class TransferModel:
    """Latency of one device: `rows` of the prior's pool were measured. Every prediction is above zero.

    `errors` and their `shares` are the distribution of (log measured - log predicted) / standard deviation.
    """

    prior: TransferPrior
    rows: IntMatrix
    posterior: Posterior
    errors: FloatVector
    shares: FloatVector

    def predict_ms(self, pool: Pool | None = None) -> FloatVector:
        """(n,) median ms of the prior's pool, or of any architectures whose source latencies are given."""
        return np.exp(self._log(pool)[0])

    def interval_ms(self, confidence: float = 0.9, pool: Pool | None = None) -> tuple[FloatVector, FloatVector]:
        """Two (n,): bounds in ms that hold one measurement with this confidence."""
        width = _quantile(np.abs(self.errors), self.shares, confidence)
        mean, sd = self._log(pool)
        return np.exp(mean - width * sd), np.exp(mean + width * sd)

    def upper_ms(self, confidence: float = 0.95, pool: Pool | None = None) -> FloatVector:
        """(n,) one-sided: a measurement stays below with this confidence."""
        mean, sd = self._log(pool)
        return np.exp(mean + _quantile(self.errors, self.shares, confidence) * sd)

    def _log(self, pool: Pool | None) -> tuple[FloatVector, FloatVector]:
        pool, found = pool or self.prior.pool, []
        for first in range(0, len(pool), _CHUNK):
            chunk = pool.take(np.arange(first, min(first + _CHUNK, len(pool))))
            found.append(self.posterior.log(self.prior.features(chunk)))
        mean, sd = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return mean, sd


def fit_transfer(prior: TransferPrior, rows: Sequence[int] | IntMatrix, measured_ms: Sequence[float]) -> TransferModel:
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
    posterior = _posterior(prior, prior.features(prior.pool.take(rows)), measured)
    errors, shares = _tried(prior, rows, posterior)
    return TransferModel(prior, rows, posterior, errors, shares)


@dataclass(frozen=True)
class Hypothesis:
    """One way in which the device may be related, given k values: `known` features, `weights` (parts + 1,)."""

    known: Features
    evidence: Evidence
    level: float
    weights: FloatVector

    def likelihood(self) -> float:
        """Log marginal likelihood of the k values."""
        return self.evidence.factor(self.weights)[0]

    def log(self, features: Features, slots: int) -> tuple[FloatVector, FloatVector]:
        """Two (n,): mean and variance of the log of one measurement."""
        features, unit, scale = (
            replace(features, centre=self.known.centre),
            self.evidence.variance,
            np.exp(self.weights),
        )
        _, lower, solved = self.evidence.factor(self.weights)
        cross = np.tensordot(scale[:-1], covariances(features, self.known, slots, unit), 1)
        explained = linalg.solve_triangular(lower, cross.T, lower=True, check_finite=False)
        spread = scale[:-1] @ variances(features, slots, unit) - (explained**2).sum(axis=0)
        return self.level + features.mean + cross @ solved, np.maximum(spread, 0.0) + scale[-1] * unit


@dataclass(frozen=True)
class Posterior:
    """The process given k values: a mixture of hypotheses, most probable first, with their `shares`."""

    slots: int
    hypotheses: tuple[Hypothesis, ...]
    shares: FloatVector

    def log(self, features: Features) -> tuple[FloatVector, FloatVector]:
        """Two (n,): mean and standard deviation of the log of one measurement."""
        found = [hypothesis.log(features, self.slots) for hypothesis in self.hypotheses]
        means, spreads = (np.array(parts) for parts in zip(*found, strict=True))
        mixed = self.shares @ means
        return mixed, np.sqrt(self.shares @ (spreads + (means - mixed) ** 2))


def _posterior(prior: TransferPrior, known: Features, measured_ms: FloatVector) -> Posterior:
    sources = known.source.shape[1]
    centres: list[int | None] = [None, *(range(sources) if sources > 1 else ())]
    hypotheses, chances = [], []
    for centre in centres:
        around = replace(known, centre=centre)
        evidence, level = _evidence(prior, around, measured_ms)
        candidates = prior.weights if centre is None else prior.relative_weights
        hypotheses += [Hypothesis(around, evidence, level, weights) for weights in candidates]
        if centre is None:
            chances += list(np.log(prior.chances * (1 - prior.relative_chance if sources > 1 else 1.0)))
        else:
            share = prior.relative_chance * known.trust[centre] / known.trust.sum() / len(candidates)
            chances += [float(np.log(share))] * len(candidates)
    likelihoods = [one.likelihood() + chance for one, chance in zip(hypotheses, chances, strict=True)]
    parent = int(np.argmax(likelihoods))
    best = hypotheses[parent]
    candidates = prior.weights if best.known.centre is None else prior.relative_weights
    # Few candidates say little about how devices vary, so the wide prior stays in proportion.
    mean, sd = candidates.mean(axis=0), np.sqrt(candidates.var(axis=0) + WEIGHT_SD**2 / len(prior.weights))
    for _ in range(2):
        evidence = replace(best.evidence, inflation=inflated(best.evidence, best.weights))
        best = replace(best, evidence=evidence, weights=most_probable(evidence, mean, sd, best.weights))
    hypotheses = [replace(one, evidence=replace(one.evidence, inflation=evidence.inflation)) for one in hypotheses]
    hypotheses.append(best)
    chances.append(chances[parent])
    likelihood = np.array([one.likelihood() + chance for one, chance in zip(hypotheses, chances, strict=True)])
    shares = np.exp(likelihood - likelihood.max())
    # A dozen that hold nearly all of the mass stand for the rest.
    kept = np.argsort(-shares)[:12]
    kept = kept[shares[kept] > 0.005 * shares.sum()]
    return Posterior(prior.slots, tuple(hypotheses[index] for index in kept), shares[kept] / shares[kept].sum())


def _evidence(prior: TransferPrior, known: Features, measured_ms: FloatVector) -> tuple[Evidence, float]:
    log = np.log(measured_ms)
    level = float((log - known.mean).mean())
    parts = covariances(known, known, prior.slots, prior.variance)
    rounding = (_last_digit(measured_ms) / measured_ms) ** 2 / 12
    return Evidence(parts, log - level - known.mean, rounding, np.ones(len(log)), prior.variance), level


def _last_digit(measured_ms: FloatVector) -> float:
    """The step in which all values are given, in ms: 1, 0.1 ... 1e-4; 0 where it is finer than that."""
    for step in (1.0, 0.1, 0.01, 1e-3, 1e-4):
        if np.allclose(measured_ms / step, np.round(measured_ms / step), rtol=0, atol=1e-6):
            return step
    return 0.0


def _relatives(alike: FloatVector, target: int) -> list[IntMatrix]:
    """Sources to hide when one is treated as the target: itself, then itself and its nearest relatives."""
    order = np.argsort(-np.where(np.arange(len(alike)) == target, np.inf, alike))
    counts = sorted({round(part * (len(order) - 1)) for part in _HIDDEN})
    return [order[: count + 1] for count in counts]


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
        # As many relatives hidden as in the middle of the cases that the weights were learnt from.
        cases = _relatives(likeness(pool.source_ms)[target], int(target))
        hidden = cases[len(cases) // 2]
        trial = _posterior(prior, known.without(hidden), pool.source_ms[rows, target])
        mean, sd = trial.log(asked.without(hidden))
        errors.append((np.log(pool.source_ms[held, target]) - mean) / sd)
        shares.append(np.full(len(held), _SOURCE_COUNT * prior.encoder.trust[target] / trusted.sum() / len(held)))
    if len(rows) > 2:
        error, spread = left_out(posterior.hypotheses[0].evidence, posterior.hypotheses[0].weights)
        errors.append(error / np.sqrt(spread))
        # Two values are spent on level and noise.
        shares.append(np.full(len(rows), (len(rows) - 2) / len(rows)))
    total = np.concatenate(shares)
    return np.concatenate(errors), total / total.sum()


def _quantile(values: FloatVector, shares: FloatVector, confidence: float) -> float:
    if not 0 < confidence < 1:
        raise PredictorError(f"confidence must lie between 0 and 1, got {confidence}")
    order = np.argsort(values)
    place = int(np.searchsorted(np.cumsum(shares[order]), confidence))
    return float(values[order][min(place, len(values) - 1)])
