"""`mobilenetv3` relaxed: a layer of a stage is an edge between the kernels and expansions, and to skip it.

The layers that the least depth has cannot be skipped. All others of a stage have one shape, so the network without some
of them is that of the architecture whose standing layers moved up: computed the same, weights included.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hwnas.errors import SpaceError
from hwnas.space import Arch, IntMatrix, Option, SearchSpace
from hwnas.supernet.relaxations import fixed_options
from hwnas.supernet.relaxed import Choice, Edge


class MobileNetV3Relaxation:
    """Choices of an edge: kernel and expansion (the latter fastest), then, where the least depth allows it, to skip."""

    def __init__(self, space: SearchSpace, fixed: Mapping[str, Option]) -> None:
        self.space = space
        self._fixed = fixed_options(space, (0, 1), fixed)
        depths, kernels, expands = space.config["depths"], space.config["kernels"], space.config["expands"]
        self._stages, self._layers, least = len(space.config["stage_widths"]), max(depths), min(depths)
        if sorted(depths) != list(range(least, self._layers + 1)):
            raise SpaceError(
                f"a relaxation skips one layer at a time, so every depth from {least} to {self._layers} must be an "
                f"option; depths are {list(depths)}"
            )
        self._depth_option = {depth: option for option, depth in enumerate(depths)}
        self._pairs = list(itertools.product(range(len(kernels)), range(len(expands))))
        names = [f"kernel {kernels[kernel]}, expand {expands[expand]}" for kernel, expand in self._pairs]
        self.edges = tuple(
            Edge(f"stage{stage}_{layer}", (*names, "skip") if layer >= least else tuple(names))
            for stage in range(self._stages)
            for layer in range(self._layers)
        )

    def archs(self, choices: IntMatrix) -> IntMatrix:
        choices = np.asarray(choices).reshape(len(choices), self._stages, self._layers)
        skipped = choices == len(self._pairs)
        # Standing layers first, in their order; what is skipped comes last, where the depth makes it inactive.
        moved = np.take_along_axis(np.where(skipped, 0, choices), np.argsort(skipped, axis=2, kind="stable"), axis=2)
        archs = np.zeros((len(choices), len(self.space.slots)), dtype=np.int64)
        for slot, option in self._fixed.items():
            archs[:, slot] = option
        stages = archs[:, len(self._fixed) :].reshape(len(choices), self._stages, 1 + 2 * self._layers)
        standing = self._layers - skipped.sum(axis=2)
        stages[:, :, 0] = np.vectorize(self._depth_option.__getitem__, otypes=[np.int64])(standing)
        pairs = np.array(self._pairs, dtype=np.int64)[moved]
        stages[:, :, 1:] = pairs.reshape(len(choices), self._stages, 2 * self._layers)
        return self.space.canonical(archs)

    def usable(self, archs: IntMatrix) -> NDArray[np.bool_]:
        return np.ones(len(archs), dtype=bool)

    def body(self) -> nn.Module:
        whole = self._arch({})
        blocks = {position.name: block for position, block in self.space.placed_blocks(whole)}
        layers = OrderedDict[str, nn.Module](
            (name, block.module()) for name, block in blocks.items() if not name.startswith("stage")
        )
        for number, edge in enumerate(self.edges):
            candidates: list[nn.Module] = []
            for choice in range(len(self._pairs)):
                placed = self.space.placed_blocks(self._arch({number: choice}))
                candidates += [block.module() for position, block in placed if position.name == edge.name]
            if len(edge.options) > len(self._pairs):
                candidates.append(nn.Identity())
            layers[edge.name] = Choice(number, candidates)
        return nn.Sequential(OrderedDict((name, layers[name]) for name in blocks))

    def sources(self, choices: Sequence[int]) -> Mapping[str, str]:
        found = {name: name for name in ("stem", "first", "final", "head")}
        for stage in range(self._stages):
            edges = range(stage * self._layers, (stage + 1) * self._layers)
            standing = [edge for edge in edges if choices[edge] < len(self._pairs)]
            for layer, edge in enumerate(standing):
                found[f"stage{stage}_{layer}"] = f"{self.edges[edge].name}.candidates.{choices[edge]}"
        return found

    def _arch(self, chosen: Mapping[int, int]) -> Arch:
        """The deepest architecture with these choices, all others 0."""
        (row,) = self.archs(np.array([[chosen.get(edge, 0) for edge in range(len(self.edges))]], dtype=np.int64))
        return tuple(int(option) for option in row)


def relax_mobilenetv3(space: SearchSpace, fixed: Mapping[str, Option]) -> MobileNetV3Relaxation:
    """The relaxation at one resolution and width: `fixed` says which, where there are several."""
    return MobileNetV3Relaxation(space, fixed)
