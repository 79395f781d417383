"""`resnet` relaxed: an edge chooses among the expansions of a block and to skip it.

So it does for a residual convolution of the stem, which stands or is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping

from hwnas.space import Option, SearchSpace
from hwnas.supernet.relaxations.chain import ChainRelaxation, Part


def relax_resnet(space: SearchSpace, fixed: Mapping[str, Option]) -> ChainRelaxation:
    """The relaxation at one resolution and one width of each kind: `fixed` says which, where there are several."""
    slots = {slot.name: number for number, slot in enumerate(space.slots)}
    fixed_slots = [number for name, number in slots.items() if name == "resolution" or name.endswith("width")]
    layers = max(space.config["stem_depths"])
    parts = [Part(slots["stem.depth"], tuple(f"stem0_residual{layer}" for layer in range(layers)), 0)]
    for stage, base in enumerate(space.config["base_depths"]):
        layers = base + max(space.config["depths"])
        places = tuple(f"stage{stage}_{layer}" for layer in range(layers))
        parts.append(Part(slots[f"stage{stage}.depth"], places, 1))
    return ChainRelaxation(space, parts, fixed_slots, fixed)
