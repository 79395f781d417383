"""Relaxations: choices are architectures, and a relaxed network computes what the derived ones do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hwnas.errors import SpaceError
from hwnas.space import Option, SearchSpace, rows_of
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.morph import MorphSpace
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.spaces.resnet import ResNetSpace
from hwnas.supernet.relaxations import relax
from hwnas.supernet.relaxed import Choice, RelaxedNetwork, arch_of, inherited_network, one_path


def mobile(**arguments: object) -> MobileNetV3Space:
    small: dict[str, object] = {
        "resolutions": (16,), "depths": (1, 2, 3), "kernels": (3, 5), "expands": (1, 2), "stem_width": 8,
        "stem_stride": 1, "stage_widths": (8, 16), "stage_strides": (1, 2), "se": (False, True),
        "activations": ("relu", "hardswish"), "head_widths": (16, 16), "num_classes": 4,
    }  # fmt: skip
    return MobileNetV3Space(**(small | arguments))  # type: ignore[arg-type]


def cells() -> NasBench201Space:
    return NasBench201Space(num_classes=4, channels=4, cells=1, resolution=8)


def residual(**arguments: object) -> ResNetSpace:
    small: dict[str, object] = {
        "resolutions": (16,), "width_mults": (1.0,), "depths": (0, 1, 2), "base_depths": (1, 2), "expands": (0.25, 0.5),
        "stem_widths": (8, 16), "stem_depths": (0, 1), "stem_stride": 1, "max_pool": False, "stage_widths": (16, 32),
        "stage_strides": (1, 2), "num_classes": 4,
    }  # fmt: skip
    return ResNetSpace(**(small | arguments))  # type: ignore[arg-type]


def random_choices(space: SearchSpace, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(rng.integers(len(edge.options))) for edge in relax(space).edges]


def test_layers_that_stand_move_up() -> None:
    space = mobile()
    relaxation = relax(space)
    #                   layer 1 skipped, layer 2 is kernel 5, expand 2        all stand
    arch = arch_of(relaxation, [1, 4, 3, 0, 2, 1])
    described = space.describe(arch)
    assert (described["stage0.depth"], described["stage1.depth"]) == (2, 3)
    assert (described["stage0.0.kernel"], described["stage0.0.expand"]) == (3, 2)
    assert (described["stage0.1.kernel"], described["stage0.1.expand"]) == (5, 2)
    assert (described["stage1.1.kernel"], described["stage1.1.expand"]) == (5, 1)
    assert arch == arch_of(relaxation, [1, 3, 4, 0, 2, 1])
    assert arch != arch_of(relaxation, [1, 4, 2, 0, 2, 1])


def test_residual_blocks_that_stand_move_up_and_the_stem_decides_for_itself() -> None:
    space = residual()
    relaxation = relax(space)
    assert [edge.options for edge in relaxation.edges[:3]] == [
        ("stand", "skip"), ("expand 0.25", "expand 0.5"), ("expand 0.25", "expand 0.5", "skip")
    ]  # fmt: skip
    #       stem, stage 0: the second is skipped, stage 1: the last is
    described = space.describe(arch_of(relaxation, [1, 1, 2, 1, 0, 1, 1, 2]))
    assert (described["stem.depth"], described["stage0.depth"], described["stage1.depth"]) == (0, 2, 3)
    assert (described["stage0.0.expand"], described["stage0.1.expand"]) == (0.5, 0.5)
    assert [described[f"stage1.{layer}.expand"] for layer in range(3)] == [0.25, 0.5, 0.5]
    other = space.describe(arch_of(relaxation, [0, 1, 2, 0, 0, 1, 1, 2]))
    assert (other["stem.depth"], other["stage0.1.expand"]) == (1, 0.25)


@pytest.mark.parametrize(
    "space",
    [
        mobile(depths=(1, 2), stage_widths=(8,), stage_strides=(1,), se=(False,), activations=("relu",)),
        residual(depths=(1, 0), base_depths=(1, 1)),
    ],
    ids=lambda space: space.name,
)
def test_every_architecture_has_choices(space: SearchSpace) -> None:
    relaxation = relax(space)
    choices = np.array(list(itertools.product(*(range(len(edge.options)) for edge in relaxation.edges))))
    everything = np.array(list(itertools.product(*(range(count) for count in space.cardinalities))))
    assert set(rows_of(relaxation.archs(choices))) == set(rows_of(space.canonical(everything)))


@pytest.mark.parametrize(
    "space", [mobile(), cells(), residual(), residual(block="basic")], ids=lambda space: space.name
)
@pytest.mark.parametrize("seed", range(4))
def test_a_path_computes_what_its_architecture_does(space: SearchSpace, seed: int) -> None:
    relaxation = relax(space)
    network = RelaxedNetwork(relaxation, seed=seed).eval()
    choices = random_choices(space, seed)
    derived = inherited_network(relaxation, network, choices).eval()
    assert repr(derived) == repr(space.build(arch_of(relaxation, choices)))
    x = torch.randn(2, *space.input_shape(arch_of(relaxation, choices)))
    # a fresh normalisation adds no constant, so cells agree, too
    torch.testing.assert_close(network(x, one_path(choices)), derived(x))
    other = [(choice + 1) % len(edge.options) for choice, edge in zip(choices, relaxation.edges, strict=True)]
    assert not torch.allclose(network(x, one_path(other)), derived(x))


def test_all_cells_share_their_edges() -> None:
    relaxation = relax(NasBench201Space(num_classes=4, channels=4, cells=2, resolution=8))
    network = RelaxedNetwork(relaxation, seed=0)
    places = [module.edge for module in network.modules() if isinstance(module, Choice)]
    assert sorted(places) == sorted(list(range(6)) * 2 * 3)


def test_a_cell_without_a_path_is_of_no_use() -> None:
    relaxation = relax(cells())
    archs = relaxation.archs(np.array([[0] * 6, [2, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]))
    assert relaxation.usable(archs).tolist() == [False, False, True]


def test_same_seed_same_weights() -> None:
    first, same, other = (RelaxedNetwork(relax(mobile()), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_resolution_and_width_are_fixed_by_name() -> None:
    space = mobile(resolutions=(16, 24), width_mults=(1.0, 2.0))
    relaxation = relax(space, {"resolution": 24, "width": 2.0})
    described = space.describe(arch_of(relaxation, [0] * 6))
    assert (described["resolution"], described["width"]) == (24, 2.0)
    per_stage = residual(width_mults=(0.5, 1.0), width_per_stage=True)
    widths: dict[str, Option] = {"stem0.width": 0.5, "stem1.width": 1.0, "stage0.width": 0.5, "stage1.width": 1.0}
    described = per_stage.describe(arch_of(relax(per_stage, widths), [0] * 8))
    assert {name: described[name] for name in widths} == widths
    with pytest.raises(SpaceError, match=r"needs one stage1\.width"):
        relax(per_stage, {name: option for name, option in widths.items() if name != "stage1.width"})
    for fixed, said in (
        ({"width": 1.0}, "needs one resolution"),
        ({"resolution": 32, "width": 1.0}, "got 32"),
        ({"resolution": 24, "width": 1.0, "stage0.depth": 1}, "no slot"),
    ):
        with pytest.raises(SpaceError, match=said):
            relax(space, fixed)


def test_spaces_that_cannot_be_relaxed_say_so() -> None:
    with pytest.raises(SpaceError, match="every depth from 1 to 3"):
        relax(mobile(depths=(1, 3)))
    with pytest.raises(SpaceError, match=r"every depth from 1 to 3 must be an option of stage0\.depth"):
        relax(residual(depths=(0, 2)))
    with pytest.raises(SpaceError, match="no relaxation of the space morph"):
        relax(MorphSpace())
