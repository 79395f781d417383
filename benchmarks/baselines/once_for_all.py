"""Once-for-All's evolution under one limit (Cai et al., ICLR 2020), written anew from the paper and its parameters.

A population of 100, 500 generations; the best quarter are parents and stay; half of the children are mutated parents,
half cross two parents. A mutation draws every gene anew with probability 0.1; a gene is the resolution, the depth of a
stage, or kernel and expansion of a layer together. Whatever exceeds the limit is drawn again until it does not, so only
what keeps the limit costs an evaluation of accuracy. One run serves one limit. Plain Python as theirs: architectures
one by one, latency as a sum of look-ups, the accuracy of a generation's children in one call.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.latency.predict import TablePredictor
from hwnas.search.problem import FloatVector
from hwnas.space import Arch, IntMatrix, SearchSpace

POPULATION, GENERATIONS, PARENTS, MUTATION, MUTATED = 100, 500, 0.25, 0.1, 0.5
EVALUATIONS = POPULATION * (GENERATIONS + 1)


@dataclass(frozen=True)
class Evolved:
    """What a run found, and how many architectures it evaluated, distinct ones among them."""

    arch: Arch
    accuracy: float
    evaluations: int
    distinct: int


def genes_of(space: SearchSpace) -> list[list[int]]:
    """Slots that are drawn together."""
    genes: list[list[int]] = []
    for number, slot in enumerate(space.slots):
        if slot.name.endswith(".expand"):
            genes[-1].append(number)
        else:
            genes.append([number])
    return genes


def plain_latency(predictor: TablePredictor) -> Callable[[Sequence[int]], float]:
    """Milliseconds of one architecture by look-ups in a dictionary."""
    space = predictor.space
    positions = [
        (
            position.slots,
            {options: float(ms) for (options, _), ms in zip(space.position_blocks(place), costs, strict=True)},
        )
        for place, (position, costs) in enumerate(zip(space.positions, predictor.costs_ms, strict=True))
    ]

    def latency_ms(arch: Sequence[int]) -> float:
        return predictor.intercept_ms + sum(costs[tuple([arch[slot] for slot in slots])] for slots, costs in positions)

    return latency_ms


def evolve(
    space: SearchSpace,
    latency_ms: Callable[[Sequence[int]], float],
    accuracy: Callable[[IntMatrix], FloatVector],
    limit_ms: float,
    seed: int,
    generations: int = GENERATIONS,
) -> Evolved:
    """The most accurate architecture within the limit that a run comes across."""
    rng, genes = random.Random(seed), genes_of(space)
    counts = [len(slot.options) for slot in space.slots]
    seen: set[Arch] = set()

    def within(draw: Callable[[], list[int]]) -> list[int]:
        while True:
            arch = draw()
            if latency_ms(arch) <= limit_ms:
                return arch

    def mutated(parent: list[int]) -> list[int]:
        child = list(parent)
        for gene in genes:
            if rng.random() < MUTATION:
                for slot in gene:
                    child[slot] = rng.randrange(counts[slot])
        return child

    def crossed(mother: list[int], father: list[int]) -> list[int]:
        return [rng.choice(pair) for pair in zip(mother, father, strict=True)]

    def scored(archs: list[list[int]]) -> list[tuple[float, list[int]]]:
        canonical = space.canonical(np.array(archs, dtype=np.int64))
        seen.update(map(tuple, canonical.tolist()))
        return list(zip(accuracy(canonical).tolist(), archs, strict=True))

    population = scored([within(lambda: [rng.randrange(count) for count in counts]) for _ in range(POPULATION)])
    best, evaluations = max(population), POPULATION
    for _ in range(generations):
        parents = sorted(population, reverse=True)[: round(PARENTS * POPULATION)]
        children = []
        for number in range(POPULATION):
            _, first = rng.choice(parents)
            if number < MUTATED * POPULATION:
                children.append(within(lambda first=first: mutated(first)))  # type: ignore[misc]
            else:
                _, second = rng.choice(parents)
                children.append(within(lambda first=first, second=second: crossed(first, second)))  # type: ignore[misc]
        evaluated = scored(children)
        evaluations += len(children)
        population = parents + evaluated
        best = max(best, *evaluated)
    return Evolved(space.check(best[1]), best[0], evaluations, len(seen))
