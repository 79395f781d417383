"""Networks that a search would choose if all that it had to go by were the table: the table is tried on them first.

A search prefers what is predicted too fast, so its networks are not like random ones: on them a table that is right on
average is too low (the optimiser's curse, Smith and Winkler 2006). What a search is for, accuracy, is not known when a
table is made. So made-up objectives stand for it: every block is worth a power of its MACs times a preference for it
at its place, a network what its blocks are worth times a preference for every option of its slots (images of more
pixels may be worth more than their MACs), all drawn at random, and the network is sought that is worth most beside its
predicted latency. In rounds: what is found is measured and corrects the table, and the next round tries to deceive the
corrected one. The last round is never fitted; it says how wrong the table is where searches end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.latency.covering import distinct_archs, spread_archs
from hwnas.latency.index import BlockIndex
from hwnas.space import IntMatrix, SearchSpace

FloatVector = NDArray[np.float64]
IntVector = NDArray[np.int64]

# The power of MACs, from none to much, and standard deviations of the log of a search's preferences for
# blocks and for options of slots: searches are to differ, for nobody knows what accuracy will depend on.
_POWER_OF_MACS, _PREFERENCE_SD, _OPTION_SD = (0.0, 0.6), (0.2, 1.2), (0.0, 1.0)
# A block without MACs (pooling, an identity) is worth as much as one with this share of the mean.
_LEAST = 0.01
# Every pass chooses the options of all slots once, and then corrects the price of latency by this power of the ratio
# of the latency found to that wanted. At a price too high for anything else, FASTEST of them settle.
_PASSES, _POWER = 10, 3.0
_TOO_HIGH, _FASTEST = 1000.0, 3
# How much more often low latencies are wanted than high ones, as the power of a number drawn from 0 to 1.
_SKEW = 1.6
# Searches for each network that is wanted: several can end at one network.
_TRIES = 3


def searched_archs(
    space: SearchSpace,
    index: BlockIndex,
    predict_ms: Callable[[IntMatrix], FloatVector],
    n: int,
    rng: np.random.Generator,
    exclude: IntMatrix,
) -> IntMatrix:
    """(up to n, slots) distinct networks that searches by `predict_ms` would choose, none of `exclude`.

    `predict_ms` gives (n,) ms of (n, slots) canonical networks. The first is the fastest of all, which every search
    finds; the latencies that the others are searched for are, on a logarithmic scale, half of them in the fastest
    third of the space's. Fewer networks where the space has no more.
    """
    macs = np.array([block.macs for block in index.blocks], dtype=np.float64)
    starts = spread_archs(space, _TRIES * n, rng)
    searches, positions, options = len(starts), len(space.positions), int(space.cardinalities.max())
    values = np.zeros((searches, positions, len(macs) + 1))  # the last: where no block stands
    sd = rng.uniform(*_PREFERENCE_SD, (searches, 1, 1))
    values[:, :, :-1] = np.exp(sd * rng.standard_normal((searches, positions, len(macs))))
    powers = rng.uniform(*_POWER_OF_MACS, (searches, 1, 1))
    values[:, :, :-1] *= (macs / macs.mean() + _LEAST) ** powers
    sd = rng.uniform(*_OPTION_SD, (searches, 1, 1))
    preferences = sd * rng.standard_normal((searches, len(space.slots), options))
    made_up = _Searches(space, index, predict_ms, values, preferences)
    prices = made_up.worth(starts, np.arange(searches)) / predict_ms(starts)
    fast = starts
    for _ in range(_FASTEST):
        fast = made_up.improved(fast, _TOO_HIGH * prices, rng)
    fast_ms = predict_ms(fast)
    fastest, slowest = np.log(fast_ms.min()), np.log(predict_ms(starts).max())
    wanted_ms = np.exp(fastest + (slowest - fastest) * rng.random(searches) ** _SKEW)
    archs = starts
    for _ in range(_PASSES):
        archs = made_up.improved(archs, prices, rng)
        prices *= (predict_ms(archs) / wanted_ms) ** _POWER
    return distinct_archs(np.concatenate([fast[[int(np.argmin(fast_ms))]], archs]), n, exclude)


@dataclass(frozen=True)
class _Searches:
    """What searches are after: (searches, positions, blocks + 1) values and (searches, slots, options) preferences."""

    space: SearchSpace
    index: BlockIndex
    predict_ms: Callable[[IntMatrix], FloatVector]
    values: NDArray[np.float64]
    preferences: NDArray[np.float64]

    def worth(self, archs: IntMatrix, searches: IntVector) -> FloatVector:
        """(n,) what (n, slots) networks are worth, each to the search whose number is beside it."""
        positions, slots = np.arange(self.values.shape[1]), np.arange(archs.shape[1])
        blocks = self.values[searches[:, None], positions, self.index.numbers(archs)].sum(axis=1)
        options = self.preferences[searches[:, None], slots, archs].sum(axis=1)
        return np.asarray(blocks * np.exp(options))

    def improved(self, archs: IntMatrix, prices: FloatVector, rng: np.random.Generator) -> IntMatrix:
        """(searches, slots): every network after each slot, in random order, took its best option.

        The best is worth most after paying the search's price for its latency.
        """
        for slot in rng.permutation(len(self.space.slots)):
            options = len(self.space.slots[slot].options)
            searches = np.repeat(np.arange(len(archs)), options)
            trials = archs[searches]
            trials[:, slot] = np.tile(np.arange(options), len(archs))
            trials = self.space.canonical(trials)
            gain = self.worth(trials, searches) - prices[searches] * self.predict_ms(trials)
            best = np.argmax(gain.reshape(len(archs), options), axis=1)
            archs = trials[best + options * np.arange(len(archs))]
        return archs
