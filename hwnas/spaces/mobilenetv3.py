"""`mobilenetv3`: Once-for-All's space of MobileNetV3-like networks (Cai et al., ICLR 2020, arXiv 1908.09791).

A stem, one fixed inverted bottleneck, five stages of 2 to 4 inverted bottlenecks with kernel 3, 5 or 7 and expansion
3, 4 or 6, and a head. Input resolution and width multiplier are slots; widths, strides, squeeze-excite and activation
of each stage, class count and the options of every slot are arguments, so that small images and own data sets fit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from hwnas.blocks import ACTIVATIONS, Block, ConvBlock, HeadBlock, MBConvBlock, conv_output_size, make_divisible
from hwnas.space import Arch, IntMatrix, Position, SearchSpace, Slot
from hwnas.spaces.arguments import is_bool, is_count, is_ratio, list_of, require


class MobileNetV3Space(SearchSpace):
    """The space; every argument has Once-for-All's value as default.

    `stage_strides` are those of the first block of each stage; `se` and `activations` one per stage; `head_widths` are
    the final expansion and the hidden layer of the classifier. Raises SpaceError on arguments that do not fit together.
    """

    name = "mobilenetv3"

    def __init__(
        self,
        *,
        resolutions: Sequence[int] = (160, 176, 192, 208, 224),
        width_mults: Sequence[float] = (1.0,),
        depths: Sequence[int] = (2, 3, 4),
        kernels: Sequence[int] = (3, 5, 7),
        expands: Sequence[int] = (3, 4, 6),
        stem_width: int = 16,
        stem_stride: int = 2,
        stage_widths: Sequence[int] = (24, 40, 80, 112, 160),
        stage_strides: Sequence[int] = (2, 2, 2, 1, 2),
        se: Sequence[bool] = (False, True, False, True, True),
        activations: Sequence[str] = ("relu", "relu", "hardswish", "hardswish", "hardswish"),
        head_widths: Sequence[int] = (960, 1280),
        in_channels: int = 3,
        num_classes: int = 1000,
    ) -> None:
        arguments: dict[str, Any] = {
            "resolutions": resolutions,
            "width_mults": width_mults,
            "depths": depths,
            "kernels": kernels,
            "expands": expands,
            "stem_width": stem_width,
            "stem_stride": stem_stride,
            "stage_widths": stage_widths,
            "stage_strides": stage_strides,
            "se": se,
            "activations": activations,
            "head_widths": head_widths,
            "in_channels": in_channels,
            "num_classes": num_classes,
        }
        _check_arguments(arguments)
        self._config: dict[str, Any] = {
            name: list(value) if isinstance(value, (list, tuple)) else value for name, value in arguments.items()
        }
        self.num_classes = num_classes
        self._max_depth = max(depths)
        # By depth option, 1 for the kernel and the expansion of every layer that stands, else 0.
        self._active = np.repeat(np.arange(self._max_depth) < np.array(depths)[:, None], 2, axis=1).astype(np.int64)
        slots = [Slot("resolution", tuple(resolutions)), Slot("width", tuple(width_mults))]
        positions = [Position("stem", (0, 1)), Position("first", (0, 1))]
        for stage in range(len(stage_widths)):
            depth_slot = len(slots)
            slots.append(Slot(f"stage{stage}.depth", tuple(depths)))
            for layer in range(self._max_depth):
                kernel_slot = len(slots)
                slots.append(Slot(f"stage{stage}.{layer}.kernel", tuple(kernels)))
                slots.append(Slot(f"stage{stage}.{layer}.expand", tuple(expands)))
                depends: tuple[int, ...] = (0, 1, kernel_slot, kernel_slot + 1)
                # A layer that every depth includes does not depend on the depth.
                depends += (depth_slot,) if layer >= min(depths) else ()
                positions.append(Position(f"stage{stage}_{layer}", depends))
        self.slots = tuple(slots)
        self.positions = (*positions, Position("final", (0, 1)), Position("head", (0, 1)))

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def _width(self, channels: int, option: int) -> int:
        return make_divisible(channels * self._config["width_mults"][option])

    def _size(self, stage: int, option: int) -> int:
        """Input size of a stage: -1 is the stem's output."""
        size = conv_output_size(self._config["resolutions"][option], self._config["stem_stride"])
        for stride in self._config["stage_strides"][: max(stage, 0)]:
            size = conv_output_size(size, stride)
        return size

    def block_at(self, position: int, options: Sequence[int]) -> Block | None:
        config = self._config
        resolution, width = options[:2]
        stem, last_width = self._width(config["stem_width"], width), self._width(config["stage_widths"][-1], width)
        final, hidden = (self._width(channels, width) for channels in config["head_widths"])
        name = self.positions[position].name
        stages = len(config["stage_widths"])
        if name == "stem":
            size = config["resolutions"][resolution]
            return ConvBlock(size, config["in_channels"], stem, 3, config["stem_stride"], "hardswish")
        if name == "first":
            return MBConvBlock(self._size(-1, resolution), stem, stem, 3, 1, stem, "relu", False)
        if name == "final":
            return ConvBlock(self._size(stages, resolution), last_width, final, 1, 1, "hardswish")
        if name == "head":
            return HeadBlock(self._size(stages, resolution), final, hidden, self.num_classes, "hardswish")
        stage, layer = divmod(position - 2, self._max_depth)
        if len(options) > 4 and layer >= config["depths"][options[4]]:
            return None
        out_channels = self._width(config["stage_widths"][stage], width)
        first = layer == 0
        in_channels = out_channels
        if first:
            in_channels = stem if stage == 0 else self._width(config["stage_widths"][stage - 1], width)
        return MBConvBlock(
            size=self._size(stage if first else stage + 1, resolution),
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=config["kernels"][options[2]],
            stride=config["stage_strides"][stage] if first else 1,
            mid_channels=make_divisible(in_channels * config["expands"][options[3]]),
            activation=config["activations"][stage],
            se=bool(config["se"][stage]),
        )

    def canonical(self, archs: IntMatrix) -> IntMatrix:
        archs = archs.copy()
        stages = archs[:, 2:].reshape(len(archs), len(self._config["stage_widths"]), 1 + 2 * self._max_depth)
        stages[:, :, 1:] *= self._active[stages[:, :, 0]]  # a view of the copy, written in place
        return archs

    def input_shape(self, arch: Arch) -> tuple[int, int, int]:
        size = self._config["resolutions"][arch[0]]
        return self._config["in_channels"], size, size

    def build(self, arch: Arch) -> nn.Module:
        """The network as a sequence of its blocks' modules."""
        return nn.Sequential(
            OrderedDict((position.name, block.module()) for position, block in self.placed_blocks(arch))
        )


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    counts = list_of(is_count)
    for name in ("stem_width", "stem_stride", "in_channels", "num_classes"):
        require(arguments, name, is_count, "a positive integer")
    for name in ("resolutions", "depths", "kernels", "expands", "stage_widths", "stage_strides", "head_widths"):
        require(arguments, name, counts, "a list of positive integers")
    require(arguments, "kernels", lambda kernels: all(kernel % 2 for kernel in kernels), "odd sizes")
    require(arguments, "width_mults", list_of(is_ratio), "a list of numbers above 0, at most 16")
    require(arguments, "se", list_of(is_bool), "a list of true and false")
    known = list_of(lambda value: value in list(ACTIVATIONS))
    require(arguments, "activations", known, f"a list of {sorted(ACTIVATIONS)}")
    for name in ("resolutions", "width_mults", "depths", "kernels", "expands"):
        require(arguments, name, lambda options: len(set(options)) == len(options), "every option once")
    stages = len(arguments["stage_widths"])
    for name in ("stage_strides", "se", "activations"):
        require(arguments, name, lambda values: len(values) == stages, f"one value per stage ({stages})")
    require(arguments, "head_widths", lambda widths: len(widths) == 2, "two values (final expansion, hidden layer)")
