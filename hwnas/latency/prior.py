"""What source devices say about a device never seen: each is treated as if it were the target.

Once with all others known and again with its nearest relatives hidden, because nobody knows whether the target has a
relative among the sources. The weights found are candidates, of two hypotheses: a device follows the mean of the
sources, or one of them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from hwnas.errors import PredictorError
from hwnas.latency.features import Encoder, Features, FloatMatrix, FloatVector, encoder_of
from hwnas.latency.pool import Pool
from hwnas.latency.relatedness import WEIGHT_MEAN, WEIGHT_SD, Evidence, covariances, most_probable
from hwnas.latency.scale import SHIFTS
from hwnas.space import IntMatrix

# Nearest relatives hidden from a source that is treated as the target, as parts of the other sources.
_HIDDEN = (0.0, 0.25, 0.5)
# Networks that scales are learnt from, and those by which a source tells its weights.
_SAMPLE, _LEARN = 20_000, 100
# The spread of latency on its scale that is expected where there is no source to show it.
_USUAL_VARIANCE = 0.1


@dataclass(frozen=True)
class TransferPrior:
    """What the source devices say about a device never seen.

    `weights` (candidates, parts + 1), see `relatedness.py`, of a device that follows the mean of the sources
    and their `chances` (candidates,),
    `relative_weights` (candidates, parts + 1) of one that follows a single source,
    `relative_chance` how often that says more, and
    `shift_chances` (shifts,) how likely each scale is. `seed` decides which networks intervals are tried on, so that
    a fit is a function of its arguments.
    """

    pool: Pool
    encoder: Encoder
    variance: float
    weights: FloatMatrix
    chances: FloatVector
    relative_weights: FloatMatrix
    relative_chance: float
    shift_chances: FloatVector
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
    sample = pool
    if len(pool) > _SAMPLE:
        sample = pool.take(rng.choice(len(pool), _SAMPLE, replace=False))
    encoder = encoder_of(sample.archs, np.asarray(pool.options), sample.source_ms)
    spread = encoder.scale(sample.source_ms).var(axis=0)
    variance = max(float(np.average(spread, weights=encoder.trust)), 1e-6) if len(spread) else _USUAL_VARIANCE
    start, seed = WEIGHT_MEAN[None], int(rng.integers(2**31))
    prior = TransferPrior(pool, encoder, variance, start, np.ones(1), start, 0.5, _shift_chances(encoder), seed)
    found: list[FloatVector] = []
    chances: list[float] = []
    relative_wins: list[bool] = []
    votes: list[float] = []
    relative: defaultdict[int, list[FloatVector]] = defaultdict(list)
    shares: defaultdict[int, float] = defaultdict(float)
    for target in range(len(pool.source_names)):
        for hidden in nearest_relatives(encoder.alike[target], target):
            rows = rng.choice(len(sample), min(_LEARN, len(sample)), replace=False)
            known = prior.features(sample.take(rows))
            measured, exact = encoder.scale(sample.source_ms[rows])[:, target], np.zeros(len(rows))
            mean_evidence, _ = evidence_of(prior, known.without(hidden), measured, exact)
            found.append(most_probable(mean_evidence, WEIGHT_MEAN, WEIGHT_SD, WEIGHT_MEAN))
            # What a device that resembles none teaches about devices is as little as what it tells of the next.
            chances.append(float(encoder.trust[target]))
            visible = np.setdiff1d(np.arange(len(pool.source_names)), hidden)
            if len(visible) > 1:
                nearest = replace(known.without(hidden), centre=int(np.argmax(encoder.alike[target, visible])))
                evidence, _ = evidence_of(prior, nearest, measured, exact)
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


def evidence_of(
    prior: TransferPrior, known: Features, values: FloatVector, rounding: FloatVector, parts: FloatMatrix | None = None
) -> tuple[Evidence, float]:
    """The evidence of k values, and their level; `parts`: the covariances of `known`, where they are at hand."""
    level = float((values - known.mean).mean())
    parts = covariances(known, known, prior.slots, prior.variance) if parts is None else parts
    return Evidence(parts, values - level - known.mean, rounding, np.ones(len(values)), prior.variance), level


def nearest_relatives(alike: FloatVector, target: int) -> list[IntMatrix]:
    """Sources to hide when one is treated as the target: itself, then itself and its nearest relatives."""
    order = np.argsort(-np.where(np.arange(len(alike)) == target, np.inf, alike))
    counts = sorted({round(part * (len(order) - 1)) for part in _HIDDEN})
    return [order[: count + 1] for count in counts]


def _shift_chances(encoder: Encoder) -> FloatVector:
    """(shifts,) how often each serves a source; all together count for one source more."""
    found = (encoder.scale.shift == SHIFTS[:, None]) @ encoder.trust + 1 / len(SHIFTS)
    return np.asarray(found / found.sum())
