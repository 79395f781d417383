"""Architectures as tuples, text and mappings, and slots: what every space inherits."""

from __future__ import annotations

import numpy as np
import pytest

from hwnas.errors import SpaceError
from hwnas.space import Slot, format_arch, parse_arch, unique_archs
from hwnas.spaces import make_space, space_arguments
from hwnas.spaces.nasbench201 import NasBench201Space

SPACE = NasBench201Space(channels=4, cells=1, resolution=8)


@pytest.mark.parametrize("arch", [(3, 3, 3, 3, 3, 3), [3] * 6, np.full(6, 3), np.full(6, 3, np.uint8)], ids=repr)
def test_index_tuples_of_any_kind(arch):
    checked = SPACE.check(arch)
    assert checked == (3,) * 6
    assert {type(index) for index in checked} == {int}


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ((3, 3, 3), "6 slots, the architecture has 3"),
        ((3, 3, 3, 3, 3, 5), "slot 'edge23' of nasbench201 has options 0..4 .* got 5"),
        ((-1, 3, 3, 3, 3, 3), "slot 'edge01' .* got -1"),
        ((0.7, 3, 3, 3, 3, 3), "is option indices, got .*float"),
        (np.full(6, 3.0), "is option indices"),
        ("333333", "is option indices"),
        ((None,) * 6, "is option indices"),
    ],
)
def test_what_is_no_architecture(arch, message):
    with pytest.raises(SpaceError, match=message):
        SPACE.check(arch)


def test_text_round_trip():
    assert parse_arch(format_arch((0, 12, 3))) == (0, 12, 3)
    assert format_arch(np.array([4, 0])) == "4-0"


@pytest.mark.parametrize(
    "text", ["", "-", "1-", "-1", "1--2", "1.0-2", "a-b", " 1-2", "1 -2", "1_0-2", "+1", "1,2", "１-2"]
)
def test_other_text_is_an_error(text):
    with pytest.raises(SpaceError, match="written like 0-2-1"):
        parse_arch(text)


def test_mappings():
    choice = dict.fromkeys((slot.name for slot in SPACE.slots), "nor_conv_1x1")
    assert SPACE.arch_of(choice) == (2,) * 6
    assert SPACE.describe((2,) * 6) == choice
    with pytest.raises(SpaceError, match="no slot 'edge99'"):
        SPACE.arch_of(choice | {"edge99": "none"})
    with pytest.raises(SpaceError, match=r"slot 'edge01' has options \(.*got 'conv'"):
        SPACE.arch_of(choice | {"edge01": "conv"})
    with pytest.raises(SpaceError, match="no option given for slot 'edge01'"):
        SPACE.arch_of({name: option for name, option in choice.items() if name != "edge01"})


def test_unique_keeps_first_occurrences_in_order():
    archs = np.array([[2, 1], [0, 3], [2, 1], [1, 1], [0, 3]])
    assert unique_archs(archs).tolist() == [[2, 1], [0, 3], [1, 1]]
    assert unique_archs(archs[:0]).shape == (0, 2)


@pytest.mark.parametrize("options", [(), (1, 1), (1, True), (1, 1.0)])
def test_slots_need_options_once(options):
    with pytest.raises(SpaceError, match="slot 'x' needs at least one option"):
        Slot("x", options)


def test_spaces_by_name():
    assert make_space("nasbench201", {"channels": 8}).config["channels"] == 8
    assert space_arguments("nasbench201")["channels"] == 16
    with pytest.raises(SpaceError, match=r"unknown space 'nb201'; known: .*nasbench201"):
        make_space("nb201", {})
    with pytest.raises(SpaceError, match=r"no argument kernel \(given 3\); did you mean kernels\?"):
        make_space("mobilenetv3", {"kernel": 3})
    with pytest.raises(SpaceError, match="its arguments: num_classes"):
        make_space("nasbench201", {"zzz": 3})


@pytest.mark.parametrize("name", ["mobilenetv3", "nasbench201", "resnet"])
def test_neighbours_are_the_other_networks_one_slot_away(name):
    space = make_space(name, {})
    arch = space.check(space.sample(1, np.random.default_rng(0))[0])
    found = space.neighbours(arch)
    assert (space.canonical(found.copy()) == found).all()
    assert len(np.unique(found, axis=0)) == len(found) > 0
    assert not (found == arch).all(axis=1).any()
    options = space.cardinalities
    one_away = {
        space.check((*arch[:slot], option, *arch[slot + 1 :]))
        for slot in range(len(arch))
        for option in range(options[slot])
    } - {arch}
    assert {tuple(row) for row in found.tolist()} == one_away
