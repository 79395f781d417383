"""`mobilenetv3` relaxed: a layer of a stage is an edge between the kernels and expansions, and to skip it."""

from __future__ import annotations

from collections.abc import Mapping

from hwnas.space import Option, SearchSpace
from hwnas.supernet.relaxations.chain import ChainRelaxation, Part


def relax_mobilenetv3(space: SearchSpace, fixed: Mapping[str, Option]) -> ChainRelaxation:
    """The relaxation at one resolution and width: `fixed` says which, where there are several."""
    layers = max(space.config["depths"])
    parts = [
        Part(2 + stage * (1 + 2 * layers), tuple(f"stage{stage}_{layer}" for layer in range(layers)), 2)
        for stage in range(len(space.config["stage_widths"]))
    ]
    return ChainRelaxation(space, parts, (0, 1), fixed)
