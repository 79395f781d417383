from __future__ import annotations

import csv
import gzip
import warnings

import numpy as np
import pytest
import torch
from torchinfo import summary

from hwnas.errors import SpaceError
from hwnas.latency.index import BlockIndex
from hwnas.spaces import make_space
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.testing.spaces import check_space
from hwnas.trace import count_params, trace

SMALL = {
    "num_classes": 10,
    "in_channels": 1,
    "resolutions": (16, 24),
    "depths": (1, 2, 3),
    "width_mults": (0.35, 0.75, 1.0),
}
ODD = {
    "num_classes": 7,
    "resolutions": (33, 41),
    "depths": (1, 3),
    "kernels": (5,),
    "expands": (1, 2),
    "stem_stride": 1,
    "stage_widths": (12, 20),
    "stage_strides": (3, 1),
    "se": (True, False),
    "activations": ("silu", "relu6"),
    "head_widths": (40, 52),
}
FIXED = {"resolutions": (20,), "depths": (2,), "kernels": (3, 7), "expands": (3,), "stem_width": 8, "num_classes": 2}


@pytest.mark.parametrize(
    ("arguments", "archs"), [({}, 0), (SMALL, 4), (ODD, 4), (FIXED, 2)], ids=["default", "small", "odd", "fixed"]
)
def test_conformance(arguments, archs):
    check_space(MobileNetV3Space(**arguments), archs=archs)


@pytest.mark.shared_data
def test_every_subnet_of_once_for_all_has_the_published_parameters_and_macs(shared_data):
    with gzip.open(shared_data / "ofa" / "ofa_mbv3_w1.0_imagenet_top1.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    resolutions = sorted({int(row["r"]) for row in rows})
    space = MobileNetV3Space(resolutions=resolutions)
    archs = space.canonical(np.array([published_arch(row, resolutions) for row in rows]))
    index = BlockIndex(space)
    assert len(rows) > 2000
    for name in ("params", "macs"):
        costs = index.costs(np.array([getattr(block, name) for block in index.blocks], dtype=float))
        published = np.array([int(row[name]) for row in rows])
        np.testing.assert_array_equal(index.total(archs, costs), published, err_msg=name)


def published_arch(row: dict[str, str], resolutions: list[int]) -> list[int]:
    arch = [resolutions.index(int(row["r"])), 0]
    for stage in range(5):
        arch.append("234".index(row["d"][stage]))
        for layer in range(4 * stage, 4 * stage + 4):
            arch += ["357".index(row["ks"][layer]), "346".index(row["e"][layer])]
    return arch


@pytest.fixture(scope="module")
def small():
    return MobileNetV3Space(**SMALL)


@pytest.mark.parametrize("seed", [0, 1])
def test_macs_and_parameters_by_independent_counts(small, seed):
    arch = tuple(small.sample(1, np.random.default_rng(seed))[0])
    network, shape = small.build(arch).eval(), small.input_shape(arch)
    macs, params = trace(network, [shape]).macs, count_params(network)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit")  # fvcore is built on it
        from fvcore.nn import FlopCountAnalysis

        flops = FlopCountAnalysis(network, torch.zeros(1, *shape))
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counted = flops.by_operator()
    assert macs == counted["conv"] + counted["linear"]
    info = summary(network, (1, *shape), verbose=0)
    assert params == info.total_params
    # torchinfo counts biases and batch normalisation, too; all biases here are of layers with one output pixel
    layers = [layer for layer in info.summary_list if layer.class_name in ("Conv2d", "Linear")]
    biases = sum(len(layer.module.bias) for layer in layers if layer.module.bias is not None)
    assert macs + biases == sum(layer.macs for layer in layers)


def test_depth_switches_layers_off(small):
    deep, shallow = dict.fromkeys(("stage0.depth",), 3), {"stage0.depth": 1}
    base = small.describe((1,) * len(small.slots))
    names = {
        key: [position.name for position, _ in small.placed_blocks(small.arch_of(base | choice))]
        for key, choice in (("deep", deep), ("shallow", shallow))
    }
    assert set(names["deep"]) - set(names["shallow"]) == {"stage0_1", "stage0_2"}
    other_kernel = base | shallow | {"stage0.1.kernel": 7}
    assert small.arch_of(other_kernel) == small.arch_of(base | shallow)
    assert small.arch_of(base | deep | {"stage0.1.kernel": 7}) != small.arch_of(base | deep)


def test_size_and_largest_input():
    assert MobileNetV3Space().size == 5 * (3 * 9**4) ** 5
    assert MobileNetV3Space().largest_input == (3, 224, 224)
    assert MobileNetV3Space(**SMALL).largest_input == (1, 24, 24)


BAD = [
    *(
        (name, value)
        for name in ("stem_width", "stem_stride", "in_channels", "num_classes")
        for value in (0, -1, 2.5, "8", True, None, [8])
    ),
    *(
        (name, value)
        for name in ("resolutions", "depths", "kernels", "expands", "stage_widths", "stage_strides", "head_widths")
        for value in ([], 3, "3", [3, "5"], [3, 5.0], [3, True], [3, 0], [3, -1], [3, None], None)
    ),
    *((name, [3, 3]) for name in ("resolutions", "depths", "kernels", "expands")),
    ("kernels", [3, 4]),
    ("expands", [1.5]),
    *(("width_mults", value) for value in ([], 1.0, "1", [0], [-1.0], [17], [float("nan")], ["1"], [True], [1, 1.0])),
    *(("se", value) for value in ([], True, [True], [0, 1, 0, 1, 1], ["yes"] * 5, [True] * 6)),
    *(("activations", value) for value in ([], "relu", ["relu"], ["gelu"] * 5, [None] * 5, [["relu"]] * 5)),
    ("stage_strides", [2, 2]),
    ("stage_widths", [16]),
    ("head_widths", [960]),
    ("head_widths", [960, 1280, 5]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: str(value))
def test_bad_arguments_are_named(name, value):
    # a stage more or less makes other lists wrong
    named = "stage_strides" if (name, value) == ("stage_widths", [16]) else name
    with pytest.raises(SpaceError, match=rf"^{named} needs .*, got "):
        make_space("mobilenetv3", {name: value})
