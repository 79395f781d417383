"""Which subnets the stages of a training draw."""

from __future__ import annotations

import numpy as np
import pytest
from supernet.spaces import cells, mobile

from hwnas.errors import RecipeError
from hwnas.search.problem import FloatVector
from hwnas.space import IntMatrix
from hwnas.supernet.extremes import largest_arch
from hwnas.supernet.stages import StageSampler, everything_free, resolution_slots, stages_of


def test_progressive_shrinking_has_the_stages_of_the_paper() -> None:
    stages = stages_of("progressive", mobile(depths=[2, 3, 4]))
    assert [stage.name for stage in stages] == ["largest", "kernel", "depth 1", "depth 2", "expand 1", "expand 2"]
    assert [round(stage.share * 590) for stage in stages] == [180, 120, 25, 120, 25, 120]
    assert [stage.subnets for stage in stages] == [1, 1, 2, 2, 4, 4]
    assert [stage.taught for stage in stages] == [False, True, True, True, True, True]
    assert [stage.sort for stage in stages] == [False, False, False, False, True, True]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"kernels": [3]}, ["largest", "depth 2", "expand 1", "expand 2"]),
        ({"depths": [2]}, ["largest", "kernel", "expand 1", "expand 2"]),
        ({"expands": [4]}, ["largest", "kernel", "depth 2"]),
        ({"depths": [2], "expands": [4]}, ["largest", "kernel", "other"]),
        ({"kernels": [3], "depths": [2], "expands": [4], "width_mults": [1.0]}, ["largest"]),
    ],
)
def test_stages_without_a_choice_are_left_out(changes: dict[str, list[float]], names: list[str]) -> None:
    stages = stages_of("progressive", mobile(**changes))
    assert [stage.name for stage in stages] == names
    assert sum(stage.share for stage in stages) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "sorts"),
    [
        ({"expands": [4]}, [False, False, True]),
        ({"depths": [2], "expands": [4]}, [False, False, True]),
        ({"expands": [4], "width_mults": [1.0]}, [False, False, False]),
    ],
)
def test_channels_are_sorted_before_widths_are_freed(changes: dict[str, list[float]], sorts: list[bool]) -> None:
    assert [stage.sort for stage in stages_of("progressive", mobile(**changes))] == sorts


def drawn(stage: str, **changes: list[int]) -> dict[str, set[object]]:
    """The options that a stage draws, by the last part of the slots' names."""
    space = mobile(**changes)
    chosen = next(each for each in stages_of("progressive", space) if each.name == stage)
    found: dict[str, set[object]] = {}
    for arch in StageSampler(space, chosen)(300, np.random.default_rng(0)).tolist():
        choice = space.describe(tuple(arch))
        for name, option in choice.items():
            stage_of, _, kind = name.rpartition(".")
            layer = int(stage_of.rpartition(".")[2]) if kind in ("kernel", "expand") else 0
            if layer < int(choice.get(f"{stage_of.partition('.')[0]}.depth", 9)):
                found.setdefault(kind, set()).add(option)
    return found


def test_options_are_freed_the_largest_first() -> None:
    free = {"depths": [1, 2, 3], "kernels": [5, 3, 7]}
    assert drawn("largest", **free) == {
        "resolution": {8, 12}, "width": {1.0}, "depth": {3}, "kernel": {7}, "expand": {4},
    }  # fmt: skip
    assert drawn("kernel", **free)["kernel"] == {3, 5, 7}
    assert drawn("depth 1", **free)["depth"] == {2, 3}
    assert drawn("expand 1", **free) == {
        "resolution": {8, 12}, "width": {1.0}, "depth": {1, 2, 3}, "kernel": {3, 5, 7}, "expand": {2, 4},
    }  # fmt: skip
    assert drawn("expand 2", **free)["width"] == {0.5, 1.0}


def test_a_latency_prior_spreads_subnets_over_latency() -> None:
    space = mobile()

    def latency_ms(archs: IntMatrix) -> FloatVector:
        return archs.sum(axis=1) + 1.0  # a sum of many options: nearly all architectures are in the middle

    uniform, spread = (
        latency_ms(StageSampler(space, everything_free(), prior)(600, np.random.default_rng(0)))
        for prior in (None, latency_ms)
    )
    assert spread.std() > 1.25 * uniform.std()
    assert np.quantile(spread, 0.95) > np.quantile(uniform, 0.95) + 1


def test_the_resolution_is_found_and_every_option_of_a_cell_is_free() -> None:
    assert resolution_slots(mobile()) == (0,)
    assert resolution_slots(cells()) == ()
    (stage,) = stages_of("sandwich", cells())
    archs = StageSampler(cells(), stage)(400, np.random.default_rng(0))
    assert {int(option) for option in archs.ravel()} == {0, 1, 2, 3, 4}
    first = stages_of("progressive", cells())[0]
    assert set(map(tuple, StageSampler(cells(), first)(5, np.random.default_rng(0)).tolist())) == {
        largest_arch(cells())
    }


def test_an_unknown_method_is_said() -> None:
    with pytest.raises(RecipeError, match="unknown way to train a supernet 'ofa'; known: progressive, sandwich"):
        stages_of("ofa", cells())
