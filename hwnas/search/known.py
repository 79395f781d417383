"""What is known of a space's architectures before any of them is evaluated: exact values, limits, and a prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hwnas.search.inner import nsga2
from hwnas.search.problem import BoolVector, FloatMatrix, FloatVector, Objective, violations
from hwnas.space import IntMatrix, SearchSpace, unique_archs

Quantity = Callable[[IntMatrix], FloatVector]

# Shares of slots taken from the architecture that keeps the limits best, when random ones do not keep them.
_MIXES = (0.0, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Known:
    """A space, and what is known of it.

    `objectives`: those of the study, in its order. `exact`: the name of an objective -> (n, slots) -> (n,) values, for
    those that need no evaluation, such as latency. `limits`: other quantities with their limits, such as MACs.
    `prior`: (n, slots) -> (n, k) scores of each architecture, each as a rank among some: 0 for the worst, 1 for the
    best; NaN where undefined. `candidates`: (n, slots) architectures that are worth a look in a space that is too large
    to be looked at whole, such as those that were scored.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    exact: Mapping[str, Quantity] = field(default_factory=dict)
    limits: Sequence[tuple[Objective, Quantity]] = ()
    prior: Callable[[IntMatrix], FloatMatrix] | None = None
    candidates: IntMatrix | None = None

    def feasible(self, archs: IntMatrix) -> BoolVector:
        """(n, slots) -> (n,) whether an architecture keeps every limit that is known before its evaluation."""
        kept: BoolVector = np.ones(len(archs), dtype=np.bool_)
        for objective, quantity in self._limited if len(archs) else ():
            kept &= violations(quantity(archs)[:, None], [objective]) == 0
        return kept

    def sample(self, n: int, rng: np.random.Generator) -> IntMatrix:
        """(up to n, slots): distinct random architectures within the limits, at least one.

        Where hardly any keep them, they are mixed with the one that is farthest within. Raises InfeasibleError, saying
        what is attainable, if none is found.
        """
        archs = self.space.sample(4 * n, rng)
        found = unique_archs(archs[self.feasible(archs)])
        if len(found) >= n or not self._limited:
            return found[:n]
        best = self._farthest_within
        found = np.concatenate([found, best])
        for share in _MIXES:
            mixed = np.where(rng.random((20 * n, best.shape[1])) < share, best, self.space.sample(20 * n, rng))
            mixed = self.space.canonical(mixed)
            found = unique_archs(np.concatenate([found, mixed[self.feasible(mixed)]]))
            if len(found) >= n:
                break
        return found[rng.permutation(len(found))[:n]]

    @property
    def worth_a_look(self) -> IntMatrix | None:
        """The `candidates` that keep the limits, if there are any to be named."""
        return None if self.candidates is None else self.candidates[self.feasible(self.candidates)]

    @property
    def exact_numbers(self) -> list[int]:
        """Which of the objectives are known exactly, in the order of `exact`."""
        names = [objective.name for objective in self.objectives]
        return [names.index(name) for name in self.exact]

    def exact_losses(self, archs: IntMatrix) -> FloatMatrix:
        """(n, slots) -> (n, exact objectives) losses, in the order of `exact`."""
        signs = [self.objectives[number].sign for number in self.exact_numbers]
        columns = [sign * quantity(archs) for sign, quantity in zip(signs, self.exact.values(), strict=True)]
        return np.stack(columns, axis=1) if columns else np.empty((len(archs), 0))

    @property
    def _limited(self) -> list[tuple[Objective, Quantity]]:
        own = [(objective, self.exact[objective.name]) for objective in self.objectives if objective.name in self.exact]
        return [(objective, quantity) for objective, quantity in (*own, *self.limits) if objective.limit is not None]

    @cached_property
    def _farthest_within(self) -> IntMatrix:
        """(1, slots): the least of the first limited quantity while all limits are kept."""
        objectives = [objective for objective, _ in self._limited]

        def evaluate(archs: IntMatrix) -> FloatMatrix:
            return np.stack([quantity(archs) for _, quantity in self._limited], axis=1)

        front = nsga2(self.space, evaluate, objectives, seed=0, generations=20)
        sign = objectives[0].sign
        return front.archs[[int(np.argmin(sign * front.values[:, 0]))]]
