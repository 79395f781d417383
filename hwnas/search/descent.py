"""Coordinate descent to the extremes of a search: the ends, and what is attainable if the limits are not."""

from __future__ import annotations

import numpy as np

from hwnas.search.archive import Archive, criteria_of
from hwnas.space import IntMatrix, SearchSpace

_SWEEPS = 50  # neighbourhoods that the search for what is attainable may look through, per extreme


def descend(archive: Archive, criterion: int, at_most: int) -> None:
    """Coordinate descent of one criterion from the best seen; additive costs need two or three sweeps.

    What was seen before cannot be better than the best seen, so only new neighbours are looked at.
    """
    end = archive.evaluated + at_most
    while archive.evaluated < end and archive.extremes(criterion):
        base, score = archive.extremes(criterion)[0].archs[0], archive.score(criterion)
        fresh = archive.add(neighbours(base, archive.space), end - archive.evaluated)
        scores = criteria_of(fresh)[:, criterion]
        better = fresh.archs[np.argsort(scores, kind="stable")[: int((scores < score).sum())]]
        if not len(better):
            return
        archive.add(_accumulated(base, better), end - archive.evaluated)


def count_neighbours(space: SearchSpace) -> int:
    """How many architectures differ from a given one in one slot."""
    return int((space.cardinalities - 1).sum())


def neighbours(arch: IntMatrix, space: SearchSpace) -> IntMatrix:
    """(slots,) -> (neighbours, slots): every other option of every slot."""
    others = space.cardinalities - 1
    slots = np.repeat(np.arange(len(arch)), others)
    steps = 1 + np.arange(len(slots)) - np.repeat(np.cumsum(others) - others, others)
    archs = np.repeat(arch[None], len(slots), axis=0)
    archs[np.arange(len(slots)), slots] = (arch[slots] + steps) % (others[slots] + 1)
    return archs


def _accumulated(base: IntMatrix, better: IntMatrix) -> IntMatrix:
    """The best change to `base`, then the best two together, three, and so on; a slot keeps its best change."""
    steps, current, settled = [], base.copy(), np.zeros(len(base), dtype=np.bool_)
    for arch in better:
        changed = (arch != base) & ~settled
        current = np.where(changed, arch, current)
        settled |= changed
        steps.append(current)
    return np.array(steps)


def push_to_limits(archive: Archive) -> None:
    """Look for the best and the worst of every limited objective, so that an error can say what is attainable."""
    at_most, criteria = _SWEEPS * count_neighbours(archive.space), archive.criteria
    for index, objective in enumerate(archive.objectives):
        if objective.limit is not None:
            descend(archive, criteria.best[index], at_most)
            descend(archive, criteria.worst[index], at_most)
    descend(archive, criteria.violation, at_most)


def infeasible_message(archive: Archive) -> str:
    """For each limited objective its limit and the range seen, and what to do."""
    criteria, space = archive.criteria, archive.space.name
    broken, kept = [], []
    for index, objective in enumerate(archive.objectives):
        if objective.limit is None:
            continue
        best = archive.score(criteria.best[index]) * objective.sign
        worst = -archive.score(criteria.worst[index]) * objective.sign
        side, relax = ("below", "raise") if objective.direction == "minimize" else ("above", "lower")
        limit = f"at or {side} {objective.quote(objective.limit)}"
        seen = f"attainable is about {min(best, worst):.4g} to {objective.quote(max(best, worst))}"
        if (best - objective.limit) * objective.sign > 0:
            broken.append(
                f"{objective.name}: no architecture of {space} found {limit}; {seen}; "
                f"{relax} the limit or widen the space"
            )
        else:
            kept.append(f"{objective.name} {limit} ({seen})")
    if not broken:
        values = archive.values(archive.extremes(criteria.violation)[0])[0]
        nearest = ", ".join(f"{o.name} {o.quote(v)}" for o, v in zip(archive.objectives, values.tolist(), strict=True))
        return (
            f"no architecture of {space} found that keeps all limits together: {', '.join(kept)}; "
            f"the nearest has {nearest}; relax a limit or widen the space"
        )
    return "\n".join([*broken, *(f"{limit} can be kept" for limit in kept)])
