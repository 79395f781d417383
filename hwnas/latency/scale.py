"""The scale on which latencies of devices are compared: between their logarithm and the ms themselves.

Devices of which one has a fixed overhead and another none are alike in neither. log(ms / median + shift) is the
logarithm at shift 0 and tends to ms with a large one (Box and Cox 1964, equation 2, with power 0). Values are
divided by the slope at the median, so that a difference of 0.01 is about one per cent whatever the shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

SHIFTS = np.array([0.0, 0.1, 0.3, 1.0])


@dataclass(frozen=True)
class Scale:
    """One scale, or (devices,) of them for the columns of a matrix. `least_ms` is the smallest latency known."""

    median_ms: Vector
    least_ms: Vector
    shift: Vector

    def __call__(self, ms: Vector) -> Vector:
        """Latencies in ms on the scale; 0 is the median."""
        return np.asarray((1 + self.shift) * np.log((ms / self.median_ms + self.shift) / (1 + self.shift)))

    def slope(self, ms: Vector) -> Vector:
        """By how much the scale rises with each ms."""
        return np.asarray((1 + self.shift) / (ms + self.shift * self.median_ms))

    def ms(self, values: Vector) -> Vector:
        """The latencies at these places of the scale, above zero: below the least, they approach it."""
        grown = np.exp(np.clip(values / (1 + self.shift), -600, 600))
        found = self.median_ms * ((1 + self.shift) * grown - self.shift)
        if self.shift == 0:
            return np.asarray(found)
        below = self.least_ms * np.exp(np.clip(found / self.least_ms - 1, -30, 0))
        return np.where(found < self.least_ms, below, found)


def scales_of(ms: Vector) -> list[Scale]:
    """A scale for each shift, of the values of one device, or of each column of a matrix."""
    return [Scale(np.median(ms, axis=0), ms.min(axis=0), np.asarray(shift)) for shift in SHIFTS]
