"""NSGA-II over predictors: thousands of architectures a second, as matrices, without one Optuna trial.

Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II", with its constraint domination
(section VI). Deviations: the result is the front of everything evaluated instead of the last population; an
architecture is evaluated once, so children seen before are dropped; the run starts from the ends of the front, found by
coordinate descent (`descent.py`), because crossing random architectures hardly ever reaches them; most children combine
changes whose effects were measured (`effects.py`), which crossing and blind mutation take several times as long to find
(`benchmarks/inner_search.py`); a generation of a long run has more children than parents, which costs NumPy less; and a
space no larger than the budget is enumerated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InfeasibleError, PredictorError, RecipeError, SpaceError
from hwnas.search.archive import Archive, Candidates, Evaluate, join
from hwnas.search.descent import count_neighbours, descend, infeasible_message, push_to_limits
from hwnas.search.effects import Effects
from hwnas.search.pareto import crowding_distance, nondominated, nondominated_ranks
from hwnas.search.problem import FloatMatrix, Objective
from hwnas.space import IntMatrix, SearchSpace

Progress = Callable[[int, int], None]

_CROSSOVER = 0.9  # share of children with two parents (Deb et al. 2002, section IV)
_PATIENCE = 20  # generations without one new architecture after which a space counts as exhausted
_ENDS = 0.25  # share of the budget that the search for the ends of the front may take
_MEASURED = 0.5  # share of what comes after that measures the effects of single changes
_GUIDED = 0.8  # share of children that combine such effects; the others are NSGA-II's
_ROUNDS = 100  # generations that a run has at least, before a generation has more children than the population
_BATCH = 500  # the most such children


@dataclass(frozen=True)
class Front:
    """Nondominated architectures: archs (k, slots), values (k, objectives) in the user's sense, sorted by the last."""

    archs: IntMatrix
    values: FloatMatrix


def nsga2(
    space: SearchSpace,
    evaluate: Evaluate,
    objectives: Sequence[Objective],
    *,
    population: int = 100,
    generations: int = 60,
    seed: int,
    initial: IntMatrix | None = None,
    progress: Progress | None = None,
) -> Front:
    """The front of `population * generations` architectures, `initial` (k, slots) among them.

    `evaluate` maps (n, slots) canonical architectures to (n, objectives) values in the user's sense and unit; it is
    asked once about each. `progress` is told how many architectures are done and how many there will be at most.
    Raises InfeasibleError if nothing keeps the limits, saying what is attainable; PredictorError if no value is finite.
    """
    if population < 4 or generations < 1:
        raise RecipeError(f"needs a population >= 4 and generations >= 1, got {population} and {generations}")
    archive, rng = Archive(space, evaluate, objectives), np.random.default_rng(seed)
    given = np.array([space.check(arch) for arch in _matrix(initial, space)], dtype=np.int64)
    given = given.reshape(-1, len(space.slots))
    budget = min(population * generations, space.size)
    tell: Progress = progress or (lambda done, total: None)
    if budget == space.size:
        _enumerate(archive, population, tell)
    else:
        _evolve(archive, population, budget, rng, given, tell)
        if archive.any_finite() and not archive.any_feasible():
            push_to_limits(archive)
            if archive.any_feasible():
                _evolve(archive, population, budget, rng, given, tell)
    tell(budget, budget)
    if not archive.any_finite():
        raise PredictorError(
            f"not one of {archive.evaluated} architectures of {space.name} has finite values for "
            f"{', '.join(objective.name for objective in objectives)}; check what evaluates them"
        )
    if not archive.any_feasible():
        raise InfeasibleError(infeasible_message(archive))
    front = archive.front()
    values = archive.values(front)
    order = np.lexsort(values.T)
    return Front(front.archs[order], values[order])


def select_spread(front_values: FloatMatrix, k: int) -> NDArray[np.int64]:
    """(n, objectives) values of a front -> (min(k, n),) ascending rows, spread evenly over it, the ends included.

    With two objectives evenly along the front; with more, the ends of every objective first, then always the row
    farthest from all chosen. Every objective counts by its range. One row alone is a middle one.
    """
    values = np.asarray(front_values, dtype=np.float64)
    if k < 1 or values.ndim != 2 or not np.isfinite(values).all():
        raise RecipeError(f"needs k >= 1 and a matrix of finite values, got k = {k} and shape {values.shape}")
    if k >= len(values):
        return np.arange(len(values), dtype=np.int64)
    extent = np.ptp(values, axis=0)
    scaled = (values - values.min(axis=0)) / np.where(extent > 0, extent, 1.0)
    chosen = _evenly_along(scaled, k) if values.shape[1] <= 2 else _farthest_first(scaled, k)
    return np.sort(np.array(chosen, dtype=np.int64))


def _matrix(initial: IntMatrix | None, space: SearchSpace) -> IntMatrix:
    if initial is None:
        return np.empty((0, len(space.slots)), dtype=np.int64)
    if np.ndim(initial) != 2:
        raise SpaceError(f"initial architectures are (n, {len(space.slots)}), got shape {np.shape(initial)}")
    return np.asarray(initial)


def _enumerate(archive: Archive, chunk: int, tell: Progress) -> None:
    cardinalities = archive.space.cardinalities
    strides = np.cumprod(np.append(1, cardinalities[:0:-1]))[::-1]
    for start in range(0, archive.space.size, chunk):
        index = np.arange(start, min(start + chunk, archive.space.size))
        archive.add(index[:, None] // strides % cardinalities, at_most=chunk)
        tell(int(index[-1]) + 1, archive.space.size)


def _evolve(
    archive: Archive, size: int, budget: int, rng: np.random.Generator, given: IntMatrix, tell: Progress
) -> None:
    """Spend a budget of evaluations, beginning with `given`, random ones and the ends of the front."""
    end, stalled, criteria = archive.evaluated + budget, 0, archive.criteria
    parts = [archive.add(given, budget)]
    parts.append(archive.add(archive.space.sample(size, rng), min(size, end - archive.evaluated)))
    share = int(budget * _ENDS / (1 + len(criteria.ends)))
    for criterion in (criteria.violation, *criteria.ends):  # the violation first: the ends need a feasible start
        if share > count_neighbours(archive.space):
            descend(archive, criterion, min(share, end - archive.evaluated))
        parts += archive.extremes(criterion)
    parents = _survivors(_distinct(join([archive.front(), *parts])), size)
    effects, begin, new = Effects(archive), archive.evaluated, 1.0
    batch = max(size, min(_BATCH, budget // _ROUNDS))
    while archive.evaluated < end and stalled < _PATIENCE:
        before, good = archive.evaluated, _good(parents)
        fresh = effects.measure(good, int(_MEASURED * (before - begin + batch)), end, rng)
        # Where effects lead to what was seen before, as in a small space, blind children find more.
        guided = int(_GUIDED * batch * min(max(4 * new, 0.25), 1.0)) if len(good) and len(effects) else 0
        if len(parents):
            children = _children(parents.archs, batch - guided, archive.space.cardinalities, rng)
        else:  # nothing finite so far
            children = archive.space.sample(batch, rng)
        if guided:
            children = np.concatenate([effects.children(good, guided, rng), children])
        fresh.append(archive.add(children, min(batch, end - archive.evaluated)))
        new = len(fresh[-1]) / batch
        stalled = 0 if archive.evaluated > before else stalled + 1
        parents = _survivors(join([parents, *fresh]), size)
        tell(min(archive.evaluated, budget), budget)


def _good(parents: Candidates) -> Candidates:
    """The feasible front of the parents."""
    feasible = parents.take(parents.violation == 0)
    return feasible.take(nondominated(feasible.losses))


def _survivors(candidates: Candidates, size: int) -> Candidates:
    """The `size` best, best first: by violation, then rank, then crowding (Deb et al. 2002, definition 1)."""
    first = _good(candidates)
    if len(first) >= size:  # the others would not survive, and ranking them is most of the work
        return first.take(np.argsort(-crowding_distance(first.losses), kind="stable")[:size])
    feasible = candidates.violation[:, None] == 0
    ranks = nondominated_ranks(np.where(feasible, candidates.losses, np.nan))  # only feasible ones dominate each other
    crowding = crowding_distance(candidates.losses, ranks)
    return candidates.take(np.lexsort((-crowding, ranks, candidates.violation))[:size])


def _children(parents: IntMatrix, n: int, cardinalities: IntMatrix, rng: np.random.Generator) -> IntMatrix:
    """(k, slots) parents, best first -> (n, slots): tournaments of two, uniform crossover, one mutation or more."""
    slots = parents.shape[1]
    # parents are sorted, so the winner of a tournament is the smaller index
    mothers, fathers = rng.integers(0, len(parents), size=(2, 2, n)).min(axis=0)
    crossed = rng.random(n) < _CROSSOVER
    swap = rng.integers(0, 2, size=(n, slots), dtype=np.bool_) & crossed[:, None]
    children: IntMatrix = np.where(swap, parents[fathers], parents[mothers])
    free = np.flatnonzero(cardinalities > 1)
    mutated = rng.random((n, len(free))) < 1 / len(free)
    unchanged = ~mutated.any(axis=1)
    mutated[unchanged, rng.integers(0, len(free), size=int(unchanged.sum()))] = True
    rows, columns = np.nonzero(mutated)
    columns = free[columns]
    step = 1 + np.floor(rng.random(len(rows)) * (cardinalities[columns] - 1)).astype(np.int64)
    children[rows, columns] = (children[rows, columns] + step) % cardinalities[columns]
    return children


def _distinct(candidates: Candidates) -> Candidates:
    _, first = np.unique(candidates.archs, axis=0, return_index=True)
    return candidates.take(np.sort(first))


def _evenly_along(scaled: FloatMatrix, k: int) -> list[int]:
    order = np.lexsort(scaled.T)
    if k == 1:
        return [int(order[len(order) // 2])]
    way = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(scaled[order], axis=0), axis=1)))
    chosen: list[int] = []
    for step, target in enumerate(np.linspace(0.0, way[-1], k)):
        first, last = (chosen[-1] + 1 if chosen else 0), len(order) - (k - step)
        chosen.append(first + int(np.abs(way[first : last + 1] - target).argmin()))
    return [int(order[index]) for index in chosen]


def _farthest_first(scaled: FloatMatrix, k: int) -> list[int]:
    if k == 1:
        return [int(np.abs(scaled - 0.5).sum(axis=1).argmin())]
    ends = list(dict.fromkeys([*scaled.argmin(axis=0).tolist(), *scaled.argmax(axis=0).tolist()]))
    chosen = ends[:k]
    while len(chosen) < k:
        distance = np.linalg.norm(scaled[:, None] - scaled[chosen], axis=2).min(axis=1)
        distance[chosen] = -1.0  # copies of a chosen row are at distance 0 and still come before it
        chosen.append(int(distance.argmax()))
    return chosen
