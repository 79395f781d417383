"""The latency of a device as a mixture of Gaussian processes, given k measured networks.

Hypotheses are the candidates of `prior.py`. Their marginal likelihood of the k values decides between all, and between
scales (`scale.py`); the best moves its weights where the values say more. Noise is Student's t, as phones are
interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg

from hwnas.latency.features import Features, FloatMatrix, FloatVector
from hwnas.latency.prior import TransferPrior, evidence_of
from hwnas.latency.relatedness import WEIGHT_SD, Evidence, covariances, inflated, most_probable, variances
from hwnas.latency.scale import Scale, scales_of


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

    def values(self, features: Features, slots: int) -> tuple[FloatVector, FloatVector]:
        """Two (n,): mean and variance of one measurement on the scale."""
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
    """The process given k values: a mixture of hypotheses, most probable first, with their `shares`.

    `step_ms`: latencies are given in whole steps of this.
    """

    slots: int
    scale: Scale
    step_ms: float
    hypotheses: tuple[Hypothesis, ...]
    shares: FloatVector

    def values(self, features: Features) -> tuple[FloatVector, FloatVector]:
        """Two (n,): mean and standard deviation of one measurement on the scale."""
        found = [hypothesis.values(features, self.slots) for hypothesis in self.hypotheses]
        means, spreads = (np.array(parts) for parts in zip(*found, strict=True))
        mixed = self.shares @ means
        # What is asked for is one more measurement, given in the same steps.
        rounding = _rounding(self.scale, self.scale.ms(mixed), self.step_ms)
        return mixed, np.sqrt(self.shares @ (spreads + (means - mixed) ** 2) + rounding)


def posterior_of(prior: TransferPrior, known: Features, measured_ms: FloatVector) -> Posterior:
    """The process of a device by its latencies (k,) ms of networks with `known` features."""
    sources = known.source.shape[1]
    centred = [replace(known, centre=centre) for centre in (None, *(range(sources) if sources > 1 else ()))]
    arounds = [(around, covariances(around, around, prior.slots, prior.variance)) for around in centred]
    found, step = [], _last_digit(measured_ms)
    for tried, shift_chance in zip(scales_of(measured_ms), prior.shift_chances, strict=True):
        rounding = _rounding(tried, measured_ms, step)
        candidates, logs = _hypotheses(prior, arounds, tried(measured_ms), rounding)
        likelihoods = np.array([one.likelihood() for one in candidates]) + logs
        # The slopes turn a density of values on this scale into one of ms, which others can be compared with.
        total = float(np.logaddexp.reduce(likelihoods) + np.log(tried.slope(measured_ms)).sum() + np.log(shift_chance))
        found.append((total, tried, candidates, logs, int(np.argmax(likelihoods))))
    _, scale, hypotheses, chances, parent = max(found, key=lambda one: one[0])
    moved = _moved(prior, hypotheses[parent])
    hypotheses = [
        replace(one, evidence=replace(one.evidence, inflation=moved.evidence.inflation)) for one in hypotheses
    ] + [moved]
    likelihoods = np.array([one.likelihood() for one in hypotheses]) + np.append(chances, chances[parent])
    shares = np.exp(likelihoods - likelihoods.max())
    # A dozen that hold nearly all of the mass stand for the rest.
    kept = np.argsort(-shares)[:12]
    kept = kept[shares[kept] > 0.005 * shares.sum()]
    return Posterior(prior.slots, scale, step, tuple(hypotheses[i] for i in kept), shares[kept] / shares[kept].sum())


def _hypotheses(
    prior: TransferPrior, arounds: list[tuple[Features, FloatMatrix]], values: FloatVector, rounding: FloatVector
) -> tuple[list[Hypothesis], FloatVector]:
    """Every candidate of both hypotheses, and the logarithms of their chances before anything was measured."""
    relative_chance = prior.relative_chance if len(arounds) > 1 else 0.0
    found, chances = [], [prior.chances * (1 - relative_chance)]
    for around, parts in arounds:
        evidence, level = evidence_of(prior, around, values, rounding, parts)
        candidates = prior.weights if around.centre is None else prior.relative_weights
        found += [Hypothesis(around, evidence, level, weights) for weights in candidates]
        if around.centre is not None:
            share = relative_chance * around.trust[around.centre] / around.trust.sum() / len(candidates)
            chances.append(np.full(len(candidates), share))
    return found, np.log(np.concatenate(chances))


def _moved(prior: TransferPrior, best: Hypothesis) -> Hypothesis:
    """A hypothesis with the weights and the noise that the measured values say."""
    candidates = prior.weights if best.known.centre is None else prior.relative_weights
    # Few candidates say little about how devices vary, so the wide prior stays in proportion.
    mean, sd = candidates.mean(axis=0), np.sqrt(candidates.var(axis=0) + WEIGHT_SD**2 / len(prior.weights))
    for _ in range(2):
        evidence = replace(best.evidence, inflation=inflated(best.evidence, best.weights))
        best = replace(best, evidence=evidence, weights=most_probable(evidence, mean, sd, best.weights))
    return best


def _rounding(scale: Scale, ms: FloatVector, step_ms: float) -> FloatVector:
    """(k,) the variance on the scale of rounding to whole steps."""
    return np.asarray((step_ms * scale.slope(ms)) ** 2 / 12)


def _last_digit(measured_ms: FloatVector) -> float:
    """The step in which all values are given, in ms: 1, 0.1 ... 1e-4; 0 where it is finer than that."""
    for step in (1.0, 0.1, 0.01, 1e-3, 1e-4):
        if np.allclose(measured_ms / step, np.round(measured_ms / step), rtol=0, atol=1e-6):
            return step
    return 0.0
