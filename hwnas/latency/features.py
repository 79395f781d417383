"""What is read of an architecture to tell its latency on a new device: source latencies, options, their places."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwnas.latency.scale import SHIFTS, Scale, scales_of
from hwnas.space import IntMatrix

FloatVector = NDArray[np.float64]
FloatMatrix = NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """What the covariance reads of n architectures.

    `source` (n, sources) centred values times `trust` (sources,), `onehot` (n, all options) centred, `counts`
    (n, kinds) how often each option occurs and `placed` (n, all options) about where, both centred and scaled to a
    mean square of one. `centre`: the source that a device is expected to follow, None for the mean of all.
    """

    source: FloatMatrix
    trust: FloatVector
    onehot: FloatMatrix
    counts: FloatMatrix
    placed: FloatMatrix
    centre: int | None = None

    def rows(self, rows: IntMatrix) -> Features:
        """The features of some of the architectures."""
        return Features(
            self.source[rows], self.trust, self.onehot[rows], self.counts[rows], self.placed[rows], self.centre
        )

    def without(self, sources: IntMatrix) -> Features:
        """The same architectures as if some source devices were not known."""
        source, trust = np.delete(self.source, sources, axis=1), np.delete(self.trust, sources)
        return Features(source, trust, self.onehot, self.counts, self.placed)

    @property
    def mean(self) -> FloatVector:
        """(n,) value on the device that is expected to be followed, centred."""
        if self.centre is not None:
            return np.asarray(self.source[:, self.centre] / self.trust[self.centre])
        return np.asarray(self.source.sum(axis=1) / self.many)

    @property
    def directions(self) -> FloatMatrix:
        """(n, sources) how each source differs from that."""
        return np.asarray(self.source - self.mean[:, None] * self.trust)

    @property
    def many(self) -> float:
        """How many sources there are, each counted by its trust; 1 where there is none."""
        return float(self.trust.sum()) or 1.0


@dataclass(frozen=True)
class Encoder:
    """Turns architectures and source latencies into `Features`, on the scales of the pool it was made for.

    `alike` (sources, sources): correlations of the source latencies on their `scale`.
    """

    options: IntMatrix
    scale: Scale
    source_mean: FloatVector
    trust: FloatVector
    alike: FloatMatrix
    onehot_mean: FloatVector
    count_mean: FloatVector
    count_scale: float
    placed_mean: FloatVector
    placed_scale: float

    def __call__(self, archs: IntMatrix, source_ms: FloatMatrix) -> Features:
        """(n, slots) int, (n, sources) ms -> Features of the n architectures."""
        return Features(
            (self.scale(source_ms) - self.source_mean) * self.trust,
            self.trust,
            one_hot(archs, self.options) - self.onehot_mean,
            (option_counts(archs, self.options) - self.count_mean) / self.count_scale,
            (option_places(archs, self.options) - self.placed_mean) / self.placed_scale,
        )


def encoder_of(archs: IntMatrix, options: IntMatrix, source_ms: FloatMatrix) -> Encoder:
    """The encoder whose scales are those of these architectures."""
    counts, placed = option_counts(archs, options), option_places(archs, options)
    scale = best_scale(source_ms)
    values = scale(source_ms)
    alike = correlations(values, values)
    return Encoder(
        options,
        scale,
        values.mean(axis=0),
        trust(alike),
        alike,
        one_hot(archs, options).mean(axis=0),
        counts.mean(axis=0),
        _root_mean_square(counts),
        placed.mean(axis=0),
        _root_mean_square(placed),
    )


def best_scale(source_ms: FloatMatrix) -> Scale:
    """(n, sources) ms -> for each source the scale on which it is most like some other, taken as its logarithm."""
    scales = scales_of(source_ms)
    log = scales[0](source_ms)
    if log.shape[1] < 2:
        return replace(scales[0], shift=np.zeros(log.shape[1]))
    same = np.eye(log.shape[1], dtype=bool)
    alike = [np.where(same, -1.0, correlations(one(source_ms), log)).max(axis=1) for one in scales]
    return replace(scales[0], shift=SHIFTS[np.argmax(alike, axis=0)])


def correlations(left: FloatMatrix, right: FloatMatrix) -> FloatMatrix:
    """(n, a), (n, b) -> (a, b) correlations of the columns; 0 where one is constant."""
    parts = [(one - one.mean(axis=0)) / np.maximum(one.std(axis=0), 1e-12) for one in (left, right)]
    return np.asarray(parts[0].T @ parts[1] / len(left))


def trust(alike: FloatMatrix) -> FloatVector:
    """(sources,) how much each source is let say: the part of its variance that some other explains.

    A device that resembles no other tells little about the next one. Two cannot outvote each other.
    """
    count = len(alike)
    if count < 3:
        return np.ones(count)
    alike = np.where(np.eye(count, dtype=bool), 0.0, alike)
    # The floor keeps a source that resembles none from counting for nothing at all.
    return np.asarray(np.clip(alike.max(axis=1), 0.03, 1.0) ** 2)


def one_hot(archs: IntMatrix, options: IntMatrix) -> FloatMatrix:
    """(n, slots) int -> (n, sum of options)."""
    offsets = np.concatenate([[0], np.cumsum(options)])
    found = np.zeros((len(archs), int(offsets[-1])))
    np.put_along_axis(found, archs + offsets[:-1], 1.0, axis=1)
    return found


def option_counts(archs: IntMatrix, options: IntMatrix) -> FloatMatrix:
    """(n, slots) int -> (n, kinds): how often each option index occurs among the slots that have as many options."""
    alike = [np.flatnonzero(options == size) for size in np.unique(options)]
    columns = [
        (archs[:, slots] == option).sum(axis=1)
        for slots in alike
        if len(slots) > 1
        for option in range(int(options[slots[0]]))
    ]
    return np.stack(columns, axis=1).astype(np.float64) if columns else np.zeros((len(archs), 0))


def option_places(archs: IntMatrix, options: IntMatrix) -> FloatMatrix:
    """(n, slots) int -> (n, sum of options of slots that have an equal): one-hot, blurred over neighbouring slots.

    The inner product of two rows counts pairs of slots with equal options, less the further apart the two slots are.
    """
    found = [np.zeros((len(archs), 0))]
    for size in np.unique(options):
        slots = np.flatnonzero(options == size)
        if len(slots) > 1:
            place = np.arange(len(slots))
            near = np.exp(-3 * np.abs(place[:, None] - place) / len(slots))
            hot = (archs[:, slots, None] == np.arange(size)).astype(np.float64)
            found.append(np.einsum("nso,st->nto", hot, np.linalg.cholesky(near)).reshape(len(archs), -1))
    return np.concatenate(found, axis=1)


def _root_mean_square(values: FloatMatrix) -> float:
    spread = float(np.sqrt(((values - values.mean(axis=0)) ** 2).sum(axis=1).mean()))
    return spread if spread > 1e-9 else 1.0
