"""`morph`: chains of convolutions with skips, which network morphisms turn into one another (LEMONADE, Elsken, Metzen &
Hutter, ICLR 2019, arXiv 1804.09081, section 3).

A 3x3 stem, stages with max pooling between, a linear classifier. A stage has any number of layers up to `max_depth`;
each has its width (the channels that leave it), kernel, kind of convolution and skip. One step in the space
(`neighbours`, in `morph_steps.py`) is one of LEMONADE's operators, and a child that takes such a step inherits its
parent's weights (`hwnas/train/inherit.py`).

Deviations from the paper, which has no bounded space: widths come from a list, depth has a bound, a skip goes around
one layer (several in a row around several), and what leaves a layer is never negative (`morph_blocks.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from hwnas.blocks import Block, ConvBlock, conv_output_size
from hwnas.errors import SpaceError
from hwnas.space import Arch, IntMatrix, Position, SearchSpace, Slot
from hwnas.spaces.morph_blocks import CONCAT, CONVEX, SKIPS, MaxPoolBlock, MorphBlock, PoolHeadBlock
from hwnas.spaces.morph_steps import steps_of

CONVS = ("plain", "separable")
WIDTH, KERNEL, CONV, SKIP = range(4)  # the slots of a layer, in this order
PARAMETERS = 15_000, 400_000  # of start networks


class MorphSpace(SearchSpace):
    """The space; the defaults suit images of 32 x 32 pixels.

    The layers of a stage are aligned to its end: of `max_depth` places, depth d uses the last d. A convex skip needs
    as many channels leaving a layer as enter it, a concatenation more (what exceeds are the filters); where that does
    not hold there is no skip, and the canonical architecture says so. Raises SpaceError on arguments that do not fit.
    """

    name = "morph"

    def __init__(
        self,
        *,
        num_classes: int = 10,
        resolution: int = 32,
        in_channels: int = 3,
        widths: Sequence[int] = (8, 16, 24, 32, 48, 64, 96, 128),
        kernels: Sequence[int] = (3, 5),
        stages: int = 3,
        max_depth: int = 4,
        stem_stride: int = 1,
    ) -> None:
        self._config: dict[str, Any] = {
            "num_classes": num_classes,
            "resolution": resolution,
            "in_channels": in_channels,
            "widths": list(widths) if isinstance(widths, tuple) else widths,
            "kernels": list(kernels) if isinstance(kernels, tuple) else kernels,
            "stages": stages,
            "max_depth": max_depth,
            "stem_stride": stem_stride,
        }
        _check_arguments(self._config)
        self.num_classes, self.stages, self.max_depth = num_classes, stages, max_depth
        self.widths = np.array(widths, dtype=np.int64)
        self.stem_slot = 0
        slots = [Slot("stem.width", tuple(widths))]
        positions = [Position("stem", (self.stem_slot,))]
        places: list[tuple[int, int]] = [(-1, -1)]  # (stage, layer) of each position; layer -1 for what is no layer
        last = self.stem_slot
        for stage in range(stages):
            if stage:
                positions.append(Position(f"pool{stage}", (last,)))
                places.append((stage, -1))
            depth = len(slots)
            slots.append(Slot(f"stage{stage}.depth", tuple(range(1, max_depth + 1))))
            for layer in range(max_depth):
                own = len(slots)
                slots += [
                    Slot(f"stage{stage}.{layer}.width", tuple(widths)),
                    Slot(f"stage{stage}.{layer}.kernel", tuple(kernels)),
                    Slot(f"stage{stage}.{layer}.conv", CONVS),
                    Slot(f"stage{stage}.{layer}.skip", SKIPS),
                ]
                before = (last, own - 4) if layer else (last,)
                positions.append(Position(f"stage{stage}_{layer}", (own, own + 1, own + 2, own + 3, depth, *before)))
                places.append((stage, layer))
            last = len(slots) - 4
        self.slots = tuple(slots)
        self.positions = (*positions, Position("head", (last,)))
        self._places = (*places, (stages, -1))

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def depth_slot(self, stage: int) -> int:
        """Where the depth of a stage stands in an architecture."""
        return 1 + stage * (1 + 4 * self.max_depth)

    def layer_slot(self, stage: int, layer: int) -> int:
        """Where the four slots of a layer begin: width, kernel, kind of convolution, skip."""
        return self.depth_slot(stage) + 1 + 4 * layer

    def size_of(self, stage: int) -> int:
        """Height and width of the images in a stage, in pixels."""
        return int(conv_output_size(self._config["resolution"], self._config["stem_stride"])) >> max(stage, 0)

    def block_at(self, position: int, options: Sequence[int]) -> Block | None:
        config = self._config
        name, (stage, layer) = self.positions[position].name, self._places[position]
        if layer < 0:
            width = config["widths"][options[0]]
            if name == "stem":
                return ConvBlock(config["resolution"], config["in_channels"], width, 3, config["stem_stride"], "relu")
            if name == "head":
                return PoolHeadBlock(self.size_of(stage - 1), width, self.num_classes)
            return MaxPoolBlock(self.size_of(stage - 1), width)
        first = self.max_depth - 1 - options[4]
        if layer < first:
            return None
        entering = config["widths"][options[5 if layer == first else 6]]
        leaving = config["widths"][options[WIDTH]]
        skip = SKIPS[options[SKIP]]
        if not _fits(skip, entering, leaving):
            skip = SKIPS[0]
        kernel, separable = config["kernels"][options[KERNEL]], CONVS[options[CONV]] == "separable"
        return MorphBlock(self.size_of(stage), entering, leaving, kernel, separable, skip)

    def canonical(self, archs: IntMatrix) -> IntMatrix:
        """(n, slots) -> (n, slots): places without a layer set to 0, and skips that do not fit to none."""
        archs = archs.copy()
        entering = self.widths[archs[:, self.stem_slot]]
        for stage in range(self.stages):
            first = self.max_depth - 1 - archs[:, self.depth_slot(stage)]
            for layer in range(self.max_depth):
                slot = self.layer_slot(stage, layer)
                there = layer >= first
                archs[~there, slot : slot + 4] = 0
                leaving = self.widths[archs[:, slot + WIDTH]]
                skip = archs[:, slot + SKIP]  # a view
                skip[(skip == SKIPS.index(CONVEX)) & (leaving != entering)] = 0
                skip[(skip == SKIPS.index(CONCAT)) & (leaving <= entering)] = 0
                entering = np.where(there, leaving, entering)
        return archs

    def input_shape(self, arch: Arch) -> tuple[int, int, int]:
        size = self._config["resolution"]
        return self._config["in_channels"], size, size

    def build(self, arch: Arch) -> nn.Module:
        """The network as a sequence of its blocks' modules."""
        return nn.Sequential(
            OrderedDict((position.name, block.module()) for position, block in self.placed_blocks(arch))
        )

    def neighbours(self, arch: Arch) -> IntMatrix:
        """(k, slots): the other canonical architectures that one of LEMONADE's operators makes of this one."""
        return steps_of(self, self.check(arch))

    def start_archs(self) -> IntMatrix:
        """(k, slots): up to four networks to start from, of 15,000 to 400,000 parameters where the space has such.

        Small and plain as in the paper: all layers alike, the width doubled from stage to stage where there is such an
        option. They are spread over that range; where there are none in it, it is the network closest to it.
        """
        low, high = (float(np.log(limit)) for limit in PARAMETERS)
        found: dict[Arch, float] = {}
        for width in self.widths.tolist():
            for depth in range(self.max_depth):
                for conv in range(len(CONVS)):
                    candidate = self._uniform(width, depth, conv)
                    found[candidate] = float(np.log(sum(block.params for block in self.blocks(candidate))))
        distance = {arch: max(low - size, size - high, 0.0) for arch, size in found.items()}
        inside = [arch for arch in found if distance[arch] == 0] or [min(found, key=lambda arch: distance[arch])]
        wanted = np.linspace(low, high, 6)[1:-1]
        chosen = [min(inside, key=lambda arch, size=size: abs(found[arch] - size)) for size in wanted]  # type: ignore[misc]
        return np.array(list(dict.fromkeys(chosen)), dtype=np.int64)

    def _uniform(self, width: int, depth: int, conv: int) -> Arch:
        arch = np.zeros(len(self.slots), dtype=np.int64)
        for stage in range(-1, self.stages):
            option = int(np.searchsorted(self.widths, width << max(stage, 0), side="right")) - 1
            if stage < 0:
                arch[self.stem_slot] = option
                continue
            arch[self.depth_slot(stage)] = depth
            for layer in range(self.max_depth - 1 - depth, self.max_depth):
                slot = self.layer_slot(stage, layer)
                arch[slot + WIDTH], arch[slot + CONV] = option, conv
        return self.check(arch.tolist())


def _fits(skip: str, entering: int, leaving: int) -> bool:
    return not ((skip == CONVEX and leaving != entering) or (skip == CONCAT and leaving <= entering))


def _check_arguments(config: Mapping[str, Any]) -> None:
    for name in ("num_classes", "resolution", "in_channels", "stages", "max_depth", "stem_stride"):
        if type(config[name]) is not int or config[name] < 1:
            raise SpaceError(f"{name} must be a positive integer, got {config[name]!r}")
    for name in ("widths", "kernels"):
        values = config[name]
        good = isinstance(values, list) and values and all(type(value) is int and value >= 1 for value in values)
        if not good or sorted(set(values)) != values:
            raise SpaceError(f"{name} must be a list of positive integers, each once and rising, got {values!r}")
    if any(kernel % 2 == 0 or kernel < 3 for kernel in config["kernels"]):
        raise SpaceError(f"kernels must be odd and at least 3, got {config['kernels']}")
    size = conv_output_size(config["resolution"], config["stem_stride"])
    if size >> (config["stages"] - 1) < 1:
        raise SpaceError(
            f"resolution {config['resolution']} with stem_stride {config['stem_stride']} cannot be halved "
            f"{config['stages'] - 1} times; give a larger resolution or fewer stages"
        )
