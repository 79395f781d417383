"""Which networks to profile: a few in which every block of a space occurs, anchors, and random others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import PredictorError
from hwnas.latency.index import BlockIndex
from hwnas.space import IntMatrix, SearchSpace, unique_archs

BoolVector = NDArray[np.bool_]

# Local search over one position at a time: it settles after two passes, more change nothing.
PASSES = 2
MAX_TRIALS = 256
# Random networks around each wanted block: `canonical` can take the block out of some of them.
STARTS = 32


def covering_archs(
    space: SearchSpace, index: BlockIndex, rng: np.random.Generator, seen: BoolVector | None = None
) -> IntMatrix:
    """(n, slots): networks in which every block of the space occurs at least once, greedily few.

    `seen` (blocks,) are blocks that need not occur. Each network starts with a block not seen yet and is improved
    position by position for the number of unseen blocks in it. Raises PredictorError if no network holds some block.
    """
    seen = np.zeros(len(index.keys), dtype=bool) if seen is None else seen.copy()
    found = [np.empty((0, len(space.slots)), dtype=np.int64)]
    while not seen.all():
        arch = _start(space, index, int(np.flatnonzero(~seen)[0]), rng)
        for _ in range(PASSES):
            arch = _improve(space, index, arch, seen, rng)
        seen[index.used(arch)[0]] = True
        found.append(arch)
    return unique_archs(np.concatenate(found))


def _start(space: SearchSpace, index: BlockIndex, wanted: int, rng: np.random.Generator) -> IntMatrix:
    """(1, slots): a random network that holds the block `wanted`."""
    for place, options in index.places(wanted):
        trials = space.sample(STARTS, rng)
        trials[:, list(space.positions[place].slots)] = options[rng.integers(0, len(options), STARTS)]
        trials = space.canonical(trials)
        holds = (index.numbers(trials) == wanted).any(axis=1)
        if holds.any():
            return trials[[int(np.argmax(holds))]]
    raise PredictorError(
        f"no network of {space.name} was found that holds the block {index.keys[wanted]}, which a position can hold; "
        "check the space with hwnas.testing.spaces.check_space"
    )


def _improve(
    space: SearchSpace, index: BlockIndex, arch: IntMatrix, seen: BoolVector, rng: np.random.Generator
) -> IntMatrix:
    """(1, slots): the network after each position, in random order, took the options with the most unseen blocks."""
    for place in rng.permutation(len(space.positions)):
        slots = list(space.positions[place].slots)
        if not slots:
            continue
        combinations = _combinations(space.cardinalities[slots], rng)
        trials = np.repeat(arch, len(combinations) + 1, axis=0)
        trials[1:, slots] = combinations  # the first stays as it is, so ties change nothing
        trials = space.canonical(trials)
        arch = trials[[int(np.argmax(_gain(index, trials, seen)))]]
    return arch


def _combinations(extents: IntMatrix, rng: np.random.Generator) -> IntMatrix:
    """(n, slots) every combination of option indices, or a random MAX_TRIALS of them."""
    total = int(np.prod(extents, dtype=float))
    flat = np.arange(total) if total <= MAX_TRIALS else rng.integers(0, total, MAX_TRIALS)
    return np.stack(np.unravel_index(flat, tuple(extents)), axis=1)


def _gain(index: BlockIndex, archs: IntMatrix, seen: BoolVector) -> NDArray[np.int64]:
    """(n,) how many distinct blocks of each network are unseen."""
    numbers = np.sort(index.numbers(archs), axis=1)
    fresh = (numbers >= 0) & ~seen[numbers]
    fresh[:, 1:] &= numbers[:, 1:] != numbers[:, :-1]
    gain: NDArray[np.int64] = fresh.sum(axis=1)
    return gain


def anchor_archs(space: SearchSpace, index: BlockIndex, rng: np.random.Generator, n: int = 5) -> IntMatrix:
    """(n, slots): networks from small to large (by MACs, out of a random sample); fewer in a tiny space.

    A single network's time shifts by a per cent with where its weights happen to lie in memory; the geometric mean of
    five shifts by half of that, and all numbers of a session with it.
    """
    sample = unique_archs(space.sample(256, rng))
    macs = index.total(sample, index.costs(np.array([block.macs for block in index.blocks], dtype=float)))
    order = np.argsort(macs, kind="stable")
    return sample[order[np.unique(np.rint(np.linspace(0.1, 0.9, n) * (len(order) - 1)).astype(np.int64))]]


def spread_archs(space: SearchSpace, n: int, rng: np.random.Generator) -> IntMatrix:
    """(n, slots): random networks from the smallest to the largest, canonical; can repeat.

    Uniform samples are all of middling size, for small and large options cancel. Here every network has a level of its
    own that its options scatter around, so that what a search finds at either end is like something measured.
    """
    level = rng.random((n, 1)) + 0.3 * rng.standard_normal((n, len(space.slots)))
    return space.canonical((level.clip(0, 1 - 1e-9) * space.cardinalities).astype(np.int64))


def random_archs(space: SearchSpace, n: int, rng: np.random.Generator, exclude: IntMatrix) -> IntMatrix:
    """(up to n, slots) distinct random networks, none of `exclude`; fewer where the space has no more."""
    return distinct_archs(space.sample(20 * n + 100, rng), n, exclude)


def distinct_archs(archs: IntMatrix, n: int, exclude: IntMatrix) -> IntMatrix:
    """(up to n, slots): the first n distinct of `archs` that are not in `exclude`."""
    taken = {tuple(row) for row in exclude}
    found: list[np.ndarray] = []
    for row in archs:
        if len(found) == n:
            break
        if tuple(row) not in taken:
            taken.add(tuple(row))
            found.append(row)
    return np.array(found, dtype=np.int64).reshape(len(found), archs.shape[1])
