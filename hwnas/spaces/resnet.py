"""`resnet`: residual networks, with Once-for-All's ResNet50 space as default (Cai et al., ICLR 2020, arXiv 1908.09791).

That space is of the authors' release, not in the paper: ResNet-50D (arXiv 1812.01187) with a depth, an expansion ratio
(channels inside of a block by channels that leave it) and width multipliers to be chosen. The stem's extra convolution
can be left out. With `block = "basic"` the space has networks of two 3x3 convolutions a block: of ResNet-18's kind, and
on small images (`stem_widths = [16], stem_stride = 1, max_pool = false, stage_widths = [16, 32, 64]`, ...) ResNet-20's.

Deviations: one width multiplier for the whole network, unless `width_per_stage`; where a stage halves an odd size,
average pooling in the shortcut has its incomplete window at the other end (`resnet_blocks.py`). The standard ResNet-50
is `stem_widths = [64], stem_kernel = 7, stem_depths = [0]` with expansion 0.25, width 1 and depths 3, 4, 6, 3, except
for the pooling in its shortcuts.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from hwnas.blocks import Block, ConvBlock, conv_output_size, make_divisible
from hwnas.space import Arch, IntMatrix, Position, SearchSpace, Slot
from hwnas.spaces.arguments import is_bool, is_count, is_count_or_zero, is_ratio, list_of, require
from hwnas.spaces.resnet_blocks import (
    BasicBlock,
    BottleneckBlock,
    MaxPoolBlock,
    PoolHeadBlock,
    ResidualBlock,
    ResidualConvBlock,
)

BLOCKS: dict[str, type[ResidualBlock]] = {"bottleneck": BottleneckBlock, "basic": BasicBlock}


class ResNetSpace(SearchSpace):
    """The space; every argument has the value of Once-for-All's ResNet50 as default, except for `width_per_stage`.

    A stage has its number of `base_depths` of blocks and one of `depths` more; `expands` are channels inside of a block
    by those that leave it. The stem is a 3x3 convolution for each of `stem_widths`, the first with `stem_kernel` and
    `stem_stride`; one of `stem_depths` is how many residual convolutions follow the first. `stage_strides` are those of
    the first block of each stage. With `width_per_stage`, every convolution of the stem and every stage chooses among
    `width_mults` by itself, as in Once-for-All. Raises SpaceError on arguments that do not fit together.
    """

    name = "resnet"

    def __init__(
        self,
        *,
        resolutions: Sequence[int] = (128, 144, 160, 176, 192, 224, 240, 256),
        width_mults: Sequence[float] = (0.65, 0.8, 1.0),
        width_per_stage: bool = False,
        depths: Sequence[int] = (0, 1, 2),
        base_depths: Sequence[int] = (2, 2, 4, 2),
        expands: Sequence[float] = (0.2, 0.25, 0.35),
        block: str = "bottleneck",
        stem_widths: Sequence[int] = (32, 64),
        stem_kernel: int = 3,
        stem_stride: int = 2,
        stem_depths: Sequence[int] = (0, 1),
        max_pool: bool = True,
        stage_widths: Sequence[int] = (256, 512, 1024, 2048),
        stage_strides: Sequence[int] = (1, 2, 2, 2),
        in_channels: int = 3,
        num_classes: int = 1000,
    ) -> None:
        arguments: dict[str, Any] = {
            "resolutions": resolutions,
            "width_mults": width_mults,
            "width_per_stage": width_per_stage,
            "depths": depths,
            "base_depths": base_depths,
            "expands": expands,
            "block": block,
            "stem_widths": stem_widths,
            "stem_kernel": stem_kernel,
            "stem_stride": stem_stride,
            "stem_depths": stem_depths,
            "max_pool": max_pool,
            "stage_widths": stage_widths,
            "stage_strides": stage_strides,
            "in_channels": in_channels,
            "num_classes": num_classes,
        }
        _check_arguments(arguments)
        self._config: dict[str, Any] = {
            name: list(value) if isinstance(value, (list, tuple)) else value for name, value in arguments.items()
        }
        self.num_classes = num_classes
        # Channels by option of the width, first those that leave the stem's convolutions, then those of the stages.
        self._channels = [[make_divisible(n * mult) for mult in width_mults] for n in (*stem_widths, *stage_widths)]
        self._sizes = [_stage_sizes(self._config, resolution) for resolution in resolutions]
        self._place_all()
        self._projects = [self._projection(stage) for stage in range(len(stage_widths))]

    def _place_all(self) -> None:
        config, stems = self._config, len(self._config["stem_widths"])
        slots = [Slot("resolution", tuple(config["resolutions"]))]
        names = ["width"]
        if config["width_per_stage"]:
            names = [f"stem{number}.width" for number in range(stems)]
            names += [f"stage{stage}.width" for stage in range(len(config["stage_widths"]))]
        slots += [Slot(name, tuple(config["width_mults"])) for name in names]
        # The slot that decides each of `_channels`.
        self._width_slots = range(1, 1 + len(names)) if config["width_per_stage"] else [1] * len(self._channels)
        self._active: list[tuple[int, IntMatrix]] = []  # by stage: depth slot, which blocks stand at each depth
        # What stands at each position: its kind, which of the stem or which stage, and the layer in it.
        self._places: list[tuple[str, int, int]] = []
        positions: list[Position] = []

        def place(name: str, kind: str, number: int, layer: int, widths: Iterable[int], *others: int) -> None:
            self._places.append((kind, number, layer))
            depends = dict.fromkeys([0, *(self._width_slots[width] for width in widths), *others])
            positions.append(Position(name, tuple(depends)))

        place("stem0", "stem", 0, 0, [0])
        depth_slot = len(slots)
        slots.append(Slot("stem.depth", tuple(config["stem_depths"])))
        for layer in range(max(config["stem_depths"])):
            place(f"stem0_residual{layer}", "residual", 0, layer, [0], depth_slot)
        for number in range(1, stems):
            place(f"stem{number}", "stem", number, 0, [number - 1, number])
        if config["max_pool"]:
            place("pool", "pool", 0, 0, [stems - 1])
        for stage, base in enumerate(config["base_depths"]):
            depth_slot, counts = len(slots), [base + more for more in config["depths"]]
            slots.append(Slot(f"stage{stage}.depth", tuple(counts)))
            self._active.append((depth_slot, (np.arange(max(counts)) < np.array(counts)[:, None]).astype(np.int64)))
            for layer in range(max(counts)):
                # A block that every depth includes does not depend on the depth.
                depth = [depth_slot] if layer >= min(counts) else []
                widths = [stems + stage - 1, stems + stage] if layer == 0 else [stems + stage]
                place(f"stage{stage}_{layer}", "block", stage, layer, widths, len(slots), *depth)
                slots.append(Slot(f"stage{stage}.{layer}.expand", tuple(config["expands"])))
        place("head", "head", 0, 0, [len(self._channels) - 1])
        self.slots, self.positions = tuple(slots), tuple(positions)

    def _projection(self, stage: int) -> bool:
        """Whether the first block of a stage has a convolution in its shortcut: for every width, or for none.

        So that blocks of all widths have the same parameters, and smaller ones can be parts of the largest.
        """
        place = len(self._config["stem_widths"]) + stage
        before, after = self._channels[place - 1], self._channels[place]
        pairs = itertools.product(before, after) if self._config["width_per_stage"] else zip(before, after, strict=True)
        return self._config["stage_strides"][stage] != 1 or any(here != there for here, there in pairs)

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def block_at(self, position: int, options: Sequence[int]) -> Block | None:
        config, (kind, number, layer) = self._config, self._places[position]
        chosen = dict(zip(self.positions[position].slots, options, strict=True))
        image, stem, *sizes = self._sizes[chosen[0]]

        def channels(place: int) -> int:
            return self._channels[place][chosen[self._width_slots[place]]]

        if kind == "stem" and number == 0:
            kernel, stride = config["stem_kernel"], config["stem_stride"]
            return ConvBlock(image, config["in_channels"], channels(0), kernel, stride, "relu")
        if kind == "stem":
            return ConvBlock(stem, channels(number - 1), channels(number), 3, 1, "relu")
        if kind == "residual":
            return ResidualConvBlock(stem, channels(0)) if layer < config["stem_depths"][options[-1]] else None
        stems = len(config["stem_widths"])
        if kind == "pool":
            return MaxPoolBlock(stem, channels(stems - 1))
        if kind == "head":
            return PoolHeadBlock(sizes[-1], channels(len(self._channels) - 1), self.num_classes)
        depth_slot, active = self._active[number]
        if depth_slot in chosen and not active[chosen[depth_slot], layer]:
            return None
        out, first = channels(stems + number), layer == 0
        return BLOCKS[config["block"]](
            size=sizes[number if first else number + 1],
            in_channels=channels(stems + number - 1) if first else out,
            out_channels=out,
            mid_channels=make_divisible(round(out * config["expands"][chosen[depth_slot + 1 + layer]])),
            stride=config["stage_strides"][number] if first else 1,
            projection=first and self._projects[number],
        )

    def canonical(self, archs: IntMatrix) -> IntMatrix:
        archs = archs.copy()
        for depth_slot, active in self._active:
            begin = depth_slot + 1
            archs[:, begin : begin + active.shape[1]] *= active[archs[:, depth_slot]]
        return archs

    def input_shape(self, arch: Arch) -> tuple[int, int, int]:
        size = self._config["resolutions"][arch[0]]
        return self._config["in_channels"], size, size

    def build(self, arch: Arch) -> nn.Module:
        """The network as a sequence of its blocks' modules."""
        return nn.Sequential(
            OrderedDict((position.name, block.module()) for position, block in self.placed_blocks(arch))
        )


def _stage_sizes(config: Mapping[str, Any], resolution: int) -> list[int]:
    """The sizes of the image, behind the stem's first convolution, entering each stage, and leaving the last."""
    sizes = [resolution, conv_output_size(resolution, config["stem_stride"])]
    sizes.append(conv_output_size(sizes[-1], 2) if config["max_pool"] else sizes[-1])
    for stride in config["stage_strides"]:
        sizes.append(conv_output_size(sizes[-1], stride))
    return sizes


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for name in ("stem_kernel", "stem_stride", "in_channels", "num_classes"):
        require(arguments, name, is_count, "a positive integer")
    for name in ("resolutions", "base_depths", "stem_widths", "stage_widths", "stage_strides"):
        require(arguments, name, list_of(is_count), "a list of positive integers")
    for name in ("depths", "stem_depths"):
        require(arguments, name, list_of(is_count_or_zero), "a list of integers of at least 0")
    for name in ("width_mults", "expands"):
        require(arguments, name, list_of(is_ratio), "a list of numbers above 0, at most 16")
    for name in ("width_per_stage", "max_pool"):
        require(arguments, name, is_bool, "true or false")
    require(arguments, "block", lambda block: block in list(BLOCKS), f"one of {list(BLOCKS)}")
    require(arguments, "stem_kernel", lambda kernel: kernel % 2, "an odd size")
    for name in ("resolutions", "depths", "stem_depths", "width_mults", "expands"):
        require(arguments, name, lambda options: len(set(options)) == len(options), "every option once")
    stages = len(arguments["stage_widths"])
    for name in ("base_depths", "stage_strides"):
        require(arguments, name, lambda values: len(values) == stages, f"one value per stage ({stages})")
