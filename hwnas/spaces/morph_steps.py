"""LEMONADE's operators as steps between architectures of `morph` (arXiv 1804.09081, section 3 and appendix A.1).

    widen, prune          a layer takes the next wider, or a narrower, option of the list
    insert, remove        a layer that can be the identity comes in, any layer goes
    kernel                a larger or a smaller kernel (the paper's networks morph to larger ones only by a new layer)
    separable, plain      the convolution becomes depthwise separable, or a plain one again
    skip in, skip out     by convex combination, or by concatenation (the layer becomes wider by its input)

A layer tied to the one before by a skip changes with it: after a convex skip it takes the same width, after a
concatenation its filters stay and what leaves it grows or shrinks with what enters. Where the list of widths has no
option for that, there is no such step. A layer cannot be inserted before the stem.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hwnas.space import Arch, IntMatrix, unique_archs
from hwnas.spaces.morph_blocks import CONCAT, CONVEX, NONE, SKIPS

if TYPE_CHECKING:
    from hwnas.spaces.morph import MorphSpace


@dataclass(frozen=True)
class Layer:
    """A layer of a chain: channels that leave it, kernel, kind of convolution, skip."""

    width: int
    kernel: int
    separable: bool
    skip: str


@dataclass(frozen=True)
class Chain:
    """An architecture of `morph` by its layers: the stem's width and the layers of each stage."""

    stem: int
    stages: tuple[tuple[Layer, ...], ...]

    def entering(self, stage: int, layer: int) -> int:
        """Channels that enter a layer."""
        if layer:
            return self.stages[stage][layer - 1].width
        return self.stages[stage - 1][-1].width if stage else self.stem

    def with_layers(self, stage: int, layers: tuple[Layer, ...]) -> Chain:
        """The chain with other layers in one stage."""
        return replace(self, stages=(*self.stages[:stage], layers, *self.stages[stage + 1 :]))

    def with_layer(self, stage: int, layer: int, new: Layer) -> Chain:
        """The chain with another layer in one place."""
        layers = self.stages[stage]
        return self.with_layers(stage, (*layers[:layer], new, *layers[layer + 1 :]))


def chain_of(space: MorphSpace, arch: Arch) -> Chain:
    """The layers of a canonical architecture."""
    described = list(space.describe(arch).values())
    stages = []
    for stage in range(space.stages):
        first = space.max_depth - 1 - arch[space.depth_slot(stage)]
        slots = [space.layer_slot(stage, layer) for layer in range(first, space.max_depth)]
        values = [described[slot : slot + 4] for slot in slots]
        stages.append(tuple(Layer(int(w), int(k), conv == "separable", str(skip)) for w, k, conv, skip in values))
    return Chain(int(described[space.stem_slot]), tuple(stages))


def arch_of_chain(space: MorphSpace, chain: Chain) -> Arch:
    """The canonical architecture with these layers, each of which must be in the space."""
    arch = np.zeros(len(space.slots), dtype=np.int64)
    widths, kernels = space.config["widths"], space.config["kernels"]
    arch[space.stem_slot] = widths.index(chain.stem)
    for stage, layers in enumerate(chain.stages):
        arch[space.depth_slot(stage)] = len(layers) - 1
        for place, layer in enumerate(layers, space.max_depth - len(layers)):
            slot = space.layer_slot(stage, place)
            arch[slot : slot + 4] = (
                widths.index(layer.width),
                kernels.index(layer.kernel),
                int(layer.separable),
                SKIPS.index(layer.skip),
            )
    return space.check(arch.tolist())


def steps_of(space: MorphSpace, arch: Arch) -> IntMatrix:
    """(k, slots): the canonical architectures one step from this one, each once, itself left out."""
    chain = chain_of(space, arch)
    found: list[Chain | None] = [_resized(space, chain, -1, 0, width) for width in _other_widths(space, chain.stem)]
    for stage, layers in enumerate(chain.stages):
        for place in range(len(layers) + 1):
            found += _insertions(space, chain, stage, place)
        for place, layer in enumerate(layers):
            found += [_resized(space, chain, stage, place, width) for width in _other_widths(space, layer.width)]
            found += _changes(space, chain, stage, place)
            found += _skips(space, chain, stage, place)
            if len(layers) > 1:
                shorter = chain.with_layers(stage, (*layers[:place], *layers[place + 1 :]))
                found.append(_settled(space, chain, shorter, stage, place))
    archs = [arch_of_chain(space, one) for one in found if one is not None]
    rows = unique_archs(np.array(archs, dtype=np.int64).reshape(-1, len(space.slots)))
    others: IntMatrix = rows[(rows != np.array(arch)).any(axis=1)]
    return others


def _options(space: MorphSpace) -> list[int]:
    return [int(width) for width in space.widths]


def _other_widths(space: MorphSpace, width: int) -> list[int]:
    """The next wider option, and the widest that keep at most three quarters and half of it: LEMONADE's prunings."""
    options = _options(space)
    wider = [option for option in options if option > width][:1]
    narrower = {max((o for o in options if o <= share * width), default=0) for share in (0.75, 0.5)} - {0}
    return wider + sorted(narrower)


def _resized(space: MorphSpace, chain: Chain, stage: int, place: int, width: int) -> Chain | None:
    """The chain with another width of the stem (stage -1) or of a layer, and of what is tied to it."""
    if stage < 0:
        return _settled(space, chain, replace(chain, stem=width), 0, 0)
    layer = chain.stages[stage][place]
    if layer.skip == CONVEX:  # tied to what enters it: the layer before is the one to resize
        return None
    if layer.skip == CONCAT and width <= chain.entering(stage, place):
        return None
    return _settled(
        space, chain, chain.with_layer(stage, place, replace(layer, width=width)), *_next(chain, stage, place)
    )


def _changes(space: MorphSpace, chain: Chain, stage: int, place: int) -> list[Chain | None]:
    layer = chain.stages[stage][place]
    kernels = space.config["kernels"]
    at = kernels.index(layer.kernel)
    near = kernels[max(0, at - 1) : at] + kernels[at + 1 : at + 2]
    changed = [replace(layer, separable=not layer.separable)] + [replace(layer, kernel=kernel) for kernel in near]
    return [chain.with_layer(stage, place, new) for new in changed]


def _insertions(space: MorphSpace, chain: Chain, stage: int, place: int) -> list[Chain | None]:
    layers = chain.stages[stage]
    if len(layers) == space.max_depth:
        return []
    width = chain.entering(stage, place)
    new = [Layer(width, kernel, separable, NONE) for kernel in space.config["kernels"] for separable in (False, True)]
    return [chain.with_layers(stage, (*layers[:place], layer, *layers[place:])) for layer in new]


def _skips(space: MorphSpace, chain: Chain, stage: int, place: int) -> list[Chain | None]:
    """A skip comes in where there is none, or goes out."""
    layer, entering = chain.stages[stage][place], chain.entering(stage, place)
    options = _options(space)
    if layer.skip == CONCAT:
        filters = layer.width - entering
        near = min(options, key=lambda option: (abs(option - filters), option))
        new = [replace(layer, skip=NONE, width=near)]
    elif layer.skip == CONVEX:
        new = [replace(layer, skip=NONE)]
    else:
        wide = [option for option in options if option >= layer.width + entering][:1]
        new = [replace(layer, skip=CONCAT, width=option) for option in wide]
        new += [replace(layer, skip=CONVEX)] * (layer.width == entering)
    return [_settled(space, chain, chain.with_layer(stage, place, one), *_next(chain, stage, place)) for one in new]


def _next(chain: Chain, stage: int, place: int) -> tuple[int, int]:
    return (stage, place + 1) if place + 1 < len(chain.stages[stage]) else (stage + 1, 0)


def _settled(space: MorphSpace, before: Chain, chain: Chain, stage: int, place: int) -> Chain | None:
    """`chain` after the layers from (stage, place) on, tied to the one before by skips, took its new width.

    `before` is the chain in which those skips fitted. None where no option is wide enough, or narrow enough.
    """
    options = _options(space)
    removed = stage < len(chain.stages) and len(chain.stages[stage]) < len(before.stages[stage])
    while stage < len(chain.stages):
        if place == len(chain.stages[stage]):
            stage, place, removed = stage + 1, 0, False
            continue
        layer, entering = chain.stages[stage][place], chain.entering(stage, place)
        if layer.skip == CONVEX:
            width = entering
        elif layer.skip == CONCAT:
            entered = before.entering(stage, place + removed)
            filters = layer.width - entered
            wide = [option for option in options if option >= entering + filters]
            narrow = [option for option in options if entering < option <= entering + filters]
            fitting = narrow[-1:] if entering < entered else wide[:1]
            if not fitting:
                return None
            width = fitting[0]
        else:
            return chain
        if width == layer.width:
            return chain
        chain = chain.with_layer(stage, place, replace(layer, width=width))
        place += 1
    return chain
