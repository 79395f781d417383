"""The hard limits of a recipe: what is known of an architecture without evaluating it, and may not be exceeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from hwnas.latency.index import BlockIndex
from hwnas.run import Run
from hwnas.search.known import Quantity
from hwnas.search.problem import FloatVector, Objective
from hwnas.space import IntMatrix

_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8}


def known_limits(run: Run) -> tuple[tuple[Objective, Quantity], ...]:
    """The limits of the recipe, each with what it limits."""
    section = run.recipe.search
    limits: tuple[tuple[Objective, Callable[[], Quantity]], ...] = (
        (Objective("latency", "ms", "minimize", section.latency), lambda: run.searched_ms),
        (Objective("macs", "", "minimize", section.macs), lambda: total(run.index, "macs")),
        (Objective("params", "", "minimize", section.params), lambda: total(run.index, "params")),
        (Objective("size", "bytes", "minimize", section.size), lambda: _size(run)),
    )
    return tuple((objective, quantity()) for objective, quantity in limits if objective.limit is not None)


def unlimited(objectives: Iterable[Objective]) -> tuple[Objective, ...]:
    """Objectives without their limits: those are among `known_limits`, where latency may mean its upper bound."""
    return tuple(replace(objective, limit=None) for objective in objectives)


def total(index: BlockIndex, name: str) -> Quantity:
    """The sum of a property of all blocks, `macs` or `params`, as a quantity of architectures."""
    costs = index.costs(np.array([getattr(block, name) for block in index.blocks], dtype=np.float64))
    return lambda archs: index.total(archs, costs)


def _size(run: Run) -> Quantity:
    """The bytes of the weights in the target's precision, of several in that of the fewest bits."""
    params, width = total(run.index, "params"), min(_BITS[precision] for precision in run.precisions) / 8

    def size_bytes(archs: IntMatrix) -> FloatVector:
        return params(archs) * width

    return size_bytes
