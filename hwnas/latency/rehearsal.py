"""Networks that a search would choose if all that it had to go by were the table: the table is tried on them first.

A search prefers what is predicted too fast, so its networks are not like random ones: on them a table that is right on
average is too low (the optimiser's curse, Smith and Winkler 2006). What a search is for, accuracy, is not known when a
table is X"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hwnas.latency.covering import distinct_archs, spread_archs
from hwnas.latency.index import BlockIndex
from hwnas.space import IntMatrix, SearchSpace

FloatVector = NDArray[np.float64]
IntVector = NDArray[np.int64]
Values = NDArray[np.float64]  # (searches, positions, blocks + 1)

# Standard deviation of the log of a search's preferences: from almost MACs alone to almost none of them.
_PREFERENCE_SD = (0.2, 1.2)
# A block without MACs (pooling, an identity) is worth as much as one with this share of the mean.
_LEAST = 0.01
# Every pass chooses the options of all slots once, and then corrects the price of latency.
_PASSES = 8
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

    `predict_ms` gives (n,) ms of (n, slots) canonical networks. The latencies that are searched for are those of the
    space, on a logarithmic scale half of them in the fastest quarter. Fewer networks where the space has no more.
    """
    macs = np.array([block.macs for block in index.blocks], dtype=np.float64)
    worth = np.sqrt(macs + _LEAST * macs.mean())
    archs = spread_archs(space, _TRIES * n, rng)
    sd = rng.uniform(*_PREFERENCE_SD, (len(archs), 1, 1))
    values = np.zeros((len(archs), len(space.positions), len(worth) + 1))  # the last: where no block stands
    values[:, :, :-1] = worth * np.exp(sd * rng.standard_normal((len(archs), len(space.positions), len(worth))))
    start_ms = predict_ms(archs)
    fastest, slowest = np.log(start_ms.min()), np.log(start_ms.max())
    wanted_ms = np.exp(fastest + (slowest - fastest) * rng.random(len(archs)) ** 2)
    searches = np.arange(len(archs))
    prices = _worth_of(index, archs, values, searches) / start_ms
    for _ in range(_PASSES):
        for slot in rng.permutation(len(space.slots)):
            archs = _best_option(space, index, predict_ms, archs, slot, values, prices)
        prices *= predict_ms(archs) / wanted_ms
    return distinct_archs(archs, n, exclude)


def _worth_of(index: BlockIndex, archs: IntMatrix, values: Values, searches: IntVector) -> FloatVector:
    """(n,) what the blocks of (n, slots) networks are worth, each network to the search whose number is beside it."""
    positions = np.arange(values.shape[1])
    return np.asarray(values[searches[:, None], positions, index.numbers(archs)].sum(axis=1))


def _best_option(
    space: SearchSpace,
    index: BlockIndex,
    predict_ms: Callable[[IntMatrix], FloatVector],
    archs: IntMatrix,
    slot: int,
    values: Values,
    prices: FloatVector,
) -> IntMatrix:
    """(searches, slots): the networks with those options of a slot which are worth most to their searches."""
    options = len(space.slots[slot].options)
    searches = np.repeat(np.arange(len(archs)), options)
    trials = archs[searches]
    trials[:, slot] = np.tile(np.arange(options), len(archs))
    trials = space.canonical(trials)
    gain = _worth_of(index, trials, values, searches) - prices[searches] * predict_ms(trials)
    best = np.argmax(gain.reshape(len(archs), options), axis=1)
    return np.asarray(trials[best + options * np.arange(len(archs))])
