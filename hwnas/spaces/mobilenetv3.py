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

from hwnas.blocks import Block, ConvBlock, HeadBlock, MBConvBlock, conv_output_size, make_divisible
from hwnas.errors import SpaceError
from hwnas.space import Arch, IntMatrix, Position, SearchSpace, Slot


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
        self._config: dict[str, Any] = {
            "resolutions": list(resolutions),
            "width_mults": list(width_mults),
            "depths": list(depths),
            "kernels": list(kernels),
            "expands": list(expands),
            "stem_width": stem_width,
            "stem_stride": stem_stride,
            "stage_widths": list(stage_widths),
            "stage_strides": list(stage_strides),
            "se": list(se),
            "activations": list(activations),
            "head_widths": list(head_widths),
            "in_channels": in_channels,
            "num_classes": num_classes,
        }
        self.num_classes = num_classes
        self._check_arguments()
        self._max_depth = max(depths)
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

    def _check_arguments(self) -> None:
        config = self._config
        stages = len(config["stage_widths"])
        for name in ("stage_strides", "se", "activations"):
            if len(config[name]) != stages:
                raise SpaceError(f"{name} needs one value per stage ({stages}), got {config[name]}")
        if len(config["head_widths"]) != 2:
            raise SpaceError(
                f"head_widths needs two values (final expansion, hidden layer), got {config['head_widths']}"
            )
        for name in ("resolutions", "depths", "kernels", "expands", "stage_widths", "stage_strides", "head_widths"):
            if not config[name] or any(not isinstance(value, int) or value < 1 for value in config[name]):
                raise SpaceError(f"{name} needs positive integers, got {config[name]}")
        for name in ("stem_width", "stem_stride", "in_channels", "num_classes"):
            if config[name] < 1:
                raise SpaceError(f"{name} must be at least 1, got {config[name]}")
        if any(kernel % 2 == 0 for kernel in config["kernels"]):
            raise SpaceError(f"kernels must be odd, got {config['kernels']}")
        if any(not 0 < width <= 16 for width in config["width_mults"]):
            raise SpaceError(f"width_mults must be above 0 (at most 16), got {config['width_mults']}")

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
        depths = np.array(self._config["depths"])
        for stage in range(len(self._config["stage_widths"])):
            depth_slot = 2 + stage * (1 + 2 * self._max_depth)
            depth = depths[archs[:, depth_slot]]
            for layer in range(min(depths), self._max_depth):
                kernel_slot = depth_slot + 1 + 2 * layer
                archs[layer >= depth, kernel_slot : kernel_slot + 2] = 0
        return archs

    def input_shape(self, arch: Arch) -> tuple[int, int, int]:
        size = self._config["resolutions"][arch[0]]
        return self._config["in_channels"], size, size

    def build(self, arch: Arch) -> nn.Module:
        """The network as a sequence of its blocks' modules."""
        return nn.Sequential(
            OrderedDict((position.name, block.module()) for position, block in self.placed_blocks(arch))
        )
