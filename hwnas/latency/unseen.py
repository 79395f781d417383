"""Networks of a space that a latency table has never seen: what it is judged by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from hwnas.errors import PredictorError, SpaceError
from hwnas.latency.covering import distinct_archs, random_archs, spread_archs
from hwnas.space import Arch, IntMatrix, SearchSpace, parse_arch, unique_archs
from hwnas.validation import Drawn
from hwprof.table import LatencyTable

# A space with fewer index tuples is searched to its end for networks that the table has not seen.
ENUMERATED = 200_000


def unseen_archs(
    space: SearchSpace,
    table: LatencyTable,
    n: int,
    seed: int,
    searched: Callable[[int, np.random.Generator, IntMatrix], IntMatrix] | None = None,
) -> tuple[IntMatrix, list[Drawn]]:
    """(up to n, slots) networks that are none of the table's models, and how each was drawn; fewer in a small space.

    Half are spread from the smallest to the largest, half are uniform; with `searched`, which gives so many networks
    that a search would choose, none of those excluded, a third are of each kind. Same seed, same networks. Raises
    PredictorError if the table has seen every network of the space.
    """
    rng = np.random.default_rng([seed, 2])  # not the stream that chose the table's own networks
    known = np.array([*_known(space, table)], dtype=np.int64).reshape(-1, len(space.slots))
    chosen = known[:0] if searched is None else searched(n // 3, np.random.default_rng([seed, 6]), known)
    taken, n = np.concatenate([known, chosen]), n - len(chosen)
    spread = distinct_archs(spread_archs(space, 10 * n, rng), n // 2, exclude=taken)
    taken = np.concatenate([taken, spread])
    uniform = random_archs(space, n - len(spread), rng, exclude=taken)
    if len(spread) + len(uniform) < n and space.size <= ENUMERATED:
        every = np.indices(tuple(space.cardinalities)).reshape(len(space.slots), -1).T
        every = rng.permutation(unique_archs(space.canonical(every)))
        lacking = n - len(spread) - len(uniform)
        uniform = np.concatenate([uniform, distinct_archs(every, lacking, np.concatenate([taken, uniform]))])
    drawn: list[Drawn] = ["spread" for _ in spread]
    drawn += ["uniform" for _ in uniform]
    drawn += ["searched" for _ in chosen]
    if not drawn:
        raise PredictorError(f"the table has seen every network of this {space.name}: none is left to validate it with")
    return np.concatenate([spread, uniform, chosen]), drawn


def _known(space: SearchSpace, table: LatencyTable) -> Iterator[Arch]:
    for model in table.models:
        with contextlib.suppress(SpaceError):  # a model of an imported table, say: no network of this space
            yield space.check(parse_arch(model.name))
