"""A search space without networks: stages, each with a depth and layers that a smaller depth switches off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hwnas.search.problem import Objective
from hwnas.space import Arch, IntMatrix, SearchSpace, Slot

ACCURACY = Objective("accuracy", "%", "maximize")
LATENCY = Objective("latency", "ms", "minimize")


class ToySpace(SearchSpace):
    """`stages` stages of 1 to `layers` layers; a layer is a width among `widths`, given as text."""

    name = "toy"
    positions = ()
    num_classes = 10

    def __init__(self, stages: int = 3, layers: int = 3, widths: int = 3) -> None:
        self.stages, self.layers, self.widths = stages, layers, widths
        self.slots = tuple(
            slot
            for stage in range(stages)
            for slot in (
                Slot(f"stage{stage}.depth", tuple(range(1, layers + 1))),
                *(
                    Slot(f"stage{stage}.layer{layer}", tuple(f"w{width}" for width in range(widths)))
                    for layer in range(layers)
                ),
            )
        )

    @property
    def config(self) -> Mapping[str, Any]:
        return {"stages": self.stages, "layers": self.layers, "widths": self.widths}

    def canonical(self, archs: IntMatrix) -> IntMatrix:
        grid = archs.reshape(len(archs), self.stages, 1 + self.layers).copy()
        active = np.arange(self.layers) <= grid[:, :, :1]
        grid[:, :, 1:] *= active
        return grid.reshape(archs.shape)

    def block_at(self, position: int, options: Sequence[int]) -> None:
        raise NotImplementedError("the toy space has no blocks")

    def input_shape(self, arch: Arch) -> tuple[int, int, int]:
        raise NotImplementedError("the toy space has no networks")

    def build(self, arch: Arch) -> None:
        raise NotImplementedError("the toy space has no networks")


class ToyEvaluator:
    """(n, slots) -> (n, 2) accuracy in % and latency in ms, in conflict; counts what it is asked for.

    Latency is additive with uneven costs, accuracy saturates in the summed capacity and rewards even stages, so neither
    is solved by one slot at a time.
    """

    def __init__(self, space: ToySpace) -> None:
        self.space = space
        rng = np.random.default_rng(1234)
        shape = (space.stages, space.layers, space.widths)
        self.cost_ms = np.cumsum(rng.uniform(0.05, 0.3, shape), axis=-1)
        self.gain = np.cumsum(rng.uniform(0.05, 0.3, shape), axis=-1)
        self.asked: list[IntMatrix] = []

    def __call__(self, archs: IntMatrix) -> np.ndarray:
        self.asked.append(archs.copy())
        grid = archs.reshape(len(archs), self.space.stages, -1)
        active = np.arange(self.space.layers) <= grid[:, :, :1]
        stage, layer = np.ogrid[: self.space.stages, : self.space.layers]
        cost = (self.cost_ms[stage, layer, grid[:, :, 1:]] * active).sum(axis=2)
        gain = (self.gain[stage, layer, grid[:, :, 1:]] * active).sum(axis=2)
        accuracy = 100 * (1 - np.exp(-np.sqrt(gain).sum(axis=1) / self.space.stages)) - 2 * gain.std(axis=1)
        return np.column_stack([accuracy, 0.2 + cost.sum(axis=1)])

    @property
    def count(self) -> int:
        return sum(len(archs) for archs in self.asked)


def everything(space: ToySpace) -> IntMatrix:
    """All index tuples of a small space."""
    return np.stack(np.meshgrid(*(np.arange(c) for c in space.cardinalities), indexing="ij"), -1).reshape(
        -1, len(space.slots)
    )
