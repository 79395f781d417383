"""Where a training stands among those that reached the same epoch, with several objectives and with limits.

Feasible before infeasible ones (Deb et al. 2002, section VI), the feasible by nondominated rank, the infeasible by how
much they break the limits; within a rank, those in less crowded places first. That order within a rank is the crowding
distance of NSGA-II, or the greedy epsilon-net of Schmucker et al. 2021 (arXiv 2106.12639), which takes the
row that is farthest from all taken before it. Theirs begins with a row drawn at random; ours with the best of the first
objective, so that the same history gives the same order.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwnas.search.pareto import crowding_distance, nondominated_ranks
from hwnas.search.problem import FloatMatrix, FloatVector

Spread = Literal["crowding", "epsilon_net"]
SPREADS: tuple[Spread, ...] = ("crowding", "epsilon_net")


class Standing(NamedTuple):
    """(n,) nondominated rank, 0 on the front, and (n,) place in the order of all rows, from 0."""

    rank: NDArray[np.int64]
    place: NDArray[np.int64]


def standing(losses: FloatMatrix, violation: FloatVector, spread: Spread) -> Standing:
    """(n, m) finite losses and (n,) violations of limits -> ranks and places; of equals, the earlier row is first."""
    feasible = violation == 0
    rank = np.empty(len(losses), dtype=np.int64)
    rank[feasible] = nondominated_ranks(losses[feasible])
    levels = np.unique(violation[~feasible], return_inverse=True)[1]
    rank[~feasible] = levels + rank[feasible].max(initial=-1) + 1
    if spread == "crowding":
        within = -crowding_distance(losses, rank)
    else:
        within = np.empty(len(losses))
        for level in range(int(rank.max(initial=-1)) + 1):
            rows = np.flatnonzero(rank == level)
            within[rows] = epsilon_net_order(losses[rows], np.ptp(losses, axis=0))
    place = np.empty(len(losses), dtype=np.int64)
    place[np.lexsort((within, rank))] = np.arange(len(losses))
    return Standing(rank, place)


def epsilon_net_order(losses: FloatMatrix, extent: FloatVector) -> NDArray[np.int64]:
    """(n, m) finite losses -> (n,) when each row is taken; distances in units of the (m,) extents of the objectives."""
    order = np.empty(len(losses), dtype=np.int64)
    scaled = losses / np.where(extent > 0, extent, 1.0)
    row = int(np.lexsort(scaled.T[::-1])[0]) if len(losses) else 0
    distance = np.full(len(losses), np.inf)
    for turn in range(len(losses)):
        order[row] = turn
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[row], axis=1))
        distance[row] = -np.inf
        row = int(distance.argmax())
    return order
