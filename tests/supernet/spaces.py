"""Spaces so small that their supernets train in a second."""

from __future__ import annotations

from typing import Any

from hwnas.space import SearchSpace
from hwnas.spaces import make_space

MOBILE: dict[str, Any] = {
    "resolutions": [8, 12], "width_mults": [0.5, 1.0], "depths": [1, 2], "kernels": [3, 5, 7], "expands": [1, 2, 4],
    "stem_width": 8, "stem_stride": 1, "stage_widths": [8, 16], "stage_strides": [1, 2], "se": [False, True],
    "activations": ["relu", "hardswish"], "head_widths": [32, 24], "in_channels": 1, "num_classes": 10,
}  # fmt: skip
CELLS: dict[str, Any] = {"channels": 4, "cells": 1, "resolution": 8, "in_channels": 1, "num_classes": 10}


def mobile(**changes: Any) -> SearchSpace:
    return make_space("mobilenetv3", {**MOBILE, **changes})


def cells() -> SearchSpace:
    return make_space("nasbench201", CELLS)


def residual() -> SearchSpace:
    """Bottlenecks with every kind of choice: depths, expansions, widths, a stem that can be skipped."""
    arguments: dict[str, Any] = {
        "resolutions": [8, 12], "width_mults": [0.5, 1.0], "depths": [0, 1], "base_depths": [1, 1],
        "expands": [0.25, 0.5, 1.0], "stem_widths": [8, 8], "stem_stride": 1, "max_pool": False,
        "stage_widths": [16, 32], "stage_strides": [1, 2], "in_channels": 1, "num_classes": 10,
    }  # fmt: skip
    return make_space("resnet", arguments)
