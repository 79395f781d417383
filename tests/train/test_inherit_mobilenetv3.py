"""Children of `mobilenetv3`: kernels, expansions, depths, widths and resolutions."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn
from trained_like import correlation, difference, settle, smooth_images, trained_like

from hwnas.space import Arch, rows_of
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.train.data import load_data
from hwnas.train.inherit import Inherited, inherit
from hwnas.train.loop import TrainConfig, train

SPACE = MobileNetV3Space(
    num_classes=5, in_channels=1, resolutions=(16, 24), width_mults=(0.5, 1.0, 1.5), depths=(1, 2, 3), stem_width=8,
    stem_stride=1, stage_widths=(16, 40), stage_strides=(2, 2), se=(False, True), activations=("relu", "hardswish"),
    head_widths=(48, 56),
)  # fmt: skip
LIMIT = 1e-5


def change_of(arch: Arch, other: Arch) -> tuple[str, bool]:
    """The kind of a step, by the slot that decides it, and whether the paper's rules make it exact."""
    before, after = SPACE.describe(arch), SPACE.describe(other)
    names = [name for name in before if before[name] != after[name]]
    name = min(names, key=lambda name: ("depth" not in name, name))  # a depth brings or takes a layer's other slots
    return name.split(".")[-1], after[name] > before[name] and name != "resolution"


@pytest.fixture(scope="module")
def family() -> list[tuple[Arch, nn.Module, Arch, Inherited]]:
    found = []
    for seed, arch in enumerate(rows_of(SPACE.sample(3, np.random.default_rng(0)))):
        parent = trained_like(SPACE, arch, seed)
        found += [
            (arch, parent, child, inherit(SPACE, arch, parent, child, seed=seed))
            for child in rows_of(SPACE.neighbours(arch))
        ]
    return found


def test_every_step_is_exact_or_not_as_its_kind_says(family):
    kinds = set()
    for arch, parent, other, child in family:
        kind, exact = change_of(arch, other)
        kinds.add((kind, exact))
        assert child.exact == exact, child.step
        if kind != "resolution":
            images = smooth_images(SPACE, arch, 8, 5)
            assert (difference(parent, child.module, images) < LIMIT) == exact, child.step
    both = {(kind, exact) for kind in ("depth", "kernel", "expand", "width") for exact in (True, False)}
    assert kinds == both | {("resolution", False)}


def test_children_are_the_networks_asked_for(family):
    for _, _, arch, child in family:
        assert str(child.module) == str(SPACE.build(arch))
        assert all(bool(value.isfinite().all()) for value in child.module.state_dict().values())


def test_approximate_children_follow_their_parents(family):
    found, chance = defaultdict(list), []
    for number, (arch, parent, other, child) in enumerate(family):
        kind, exact = change_of(arch, other)
        if exact or kind in ("resolution", "width"):  # half of all channels of weights that were never trained is noise
            continue
        images = smooth_images(SPACE, arch, 64, 6)
        found[kind].append(correlation(parent, child.module, images))
        if number % 8 == 0:
            chance.append(correlation(parent, trained_like(SPACE, other, 100 + number), images))
    assert set(found) == {"depth", "kernel", "expand"}
    for kind, values in found.items():
        assert np.mean(values) > max(0.4, abs(np.mean(chance)) + 0.2), (kind, values, chance)


def test_a_narrower_network_follows_a_trained_parent():
    """And after one epoch it knows more than a fresh one."""
    space = MobileNetV3Space(
        num_classes=10, in_channels=1, resolutions=(8,), width_mults=(0.5, 1.0), depths=(1,), kernels=(3,),
        expands=(3,), stem_width=16, stem_stride=1, stage_widths=(16, 32), stage_strides=(1, 2), se=(False, True),
        activations=("relu", "hardswish"), head_widths=(64, 64),
    )  # fmt: skip
    data = load_data("digits")
    wide, narrow = (0, 1, *[0] * (len(space.slots) - 2)), (0,) * len(space.slots)
    torch.manual_seed(0)
    parent, fresh = space.build(wide), space.build(narrow)
    train(parent, data, 8, TrainConfig(epochs=6))
    child = inherit(space, wide, parent, narrow, seed=0).module
    images = (data.x_test.float() / 255 - data.mean[0]) / data.std[0]
    assert correlation(parent, child, images) > max(0.3, correlation(parent, fresh, images) + 0.2)
    short = TrainConfig(epochs=1, learning_rate=0.1, warmup_epochs=0.5)
    inherited, from_scratch = (train(net, data, 8, short).test_accuracy for net in (child, fresh))
    assert inherited > from_scratch + 15


def test_another_resolution_has_the_same_weights(family):
    tried = 0
    for _, parent, _, child in family:
        if child.step.startswith("resolution") and ";" not in child.step:
            tried += 1
            assert child.untouched == tuple(name for name, _ in parent.named_parameters())
            for key, value in parent.state_dict().items():
                if not key.endswith("num_batches_tracked"):
                    assert torch.equal(value, child.module.state_dict()[key])
    assert tried == 3


def test_what_is_untouched(family):
    for _, parent, _, child in family:
        for name in child.untouched:
            assert torch.equal(child.module.get_parameter(name), parent.get_parameter(name))
        kind = child.step.split(" ")[0].split(".")[-1]
        touched = {name.split(".")[0] for name, _ in child.module.named_parameters()} - {
            name.split(".")[0] for name in child.untouched
        }
        if kind in ("kernel", "expand") and ";" not in child.step:
            assert touched == {"_".join(child.step.split(" ")[0].split(".")[:2])}


def test_all_steps_at_once():
    """From the smallest network to the largest, and by any way."""
    smallest, largest = (0,) * len(SPACE.slots), (0, *(SPACE.cardinalities[1:] - 1).tolist())
    parent = trained_like(SPACE, smallest, 0)
    child = inherit(SPACE, smallest, parent, largest, seed=0)
    images = smooth_images(SPACE, smallest, 8, 5)
    assert child.exact
    assert difference(parent, child.module, images) < LIMIT
    rng = np.random.default_rng(0)
    arch, module = smallest, parent
    for _ in range(5):
        near = rows_of(rng.permutation(SPACE.neighbours(arch)))
        arch, other = next(other for other in near if change_of(arch, other)[1]), arch
        module = inherit(SPACE, other, module, arch, seed=0).module
    assert difference(parent, module, images) < LIMIT


def test_new_weights_get_gradients(family):
    tried = defaultdict(int)
    for arch, _, other, child in family:
        kind, exact = change_of(arch, other)
        if not exact or tried[kind] > 3:
            continue
        tried[kind] += 1
        module = child.module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        grads = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
        for step in range(3):  # a silent branch opens its scale first, then what reads new channels in it
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(smooth_images(SPACE, arch, 16, step)), torch.arange(16) % 5).backward()
            optimizer.step()
            for name, value in module.named_parameters():
                grads[name] += value.grad.abs()
        for name, grad in grads.items():
            if name not in child.untouched and "se.gate" not in name:
                assert (grad > 0).float().mean() > 0.5, (child.step, name)
    assert len(tried) == 4


def test_pruned_channels_are_those_of_small_filters():
    wide, narrow = (0, 1, *[0] * (len(SPACE.slots) - 2)), (0, 0, *[0] * (len(SPACE.slots) - 2))
    parent = trained_like(SPACE, wide, 0)
    child = inherit(SPACE, wide, parent, narrow, seed=0).module
    norms = parent.final.conv.weight.detach().abs().sum((1, 2, 3))
    kept = norms.argsort(descending=True)[: len(child.final.conv.weight)].sort().values
    assert torch.equal(child.final.bn.weight, parent.final.bn.weight[kept])


def test_from_and_to_a_layer_without_expansion():
    space = MobileNetV3Space(
        num_classes=3, in_channels=1, resolutions=(12,), depths=(2,), kernels=(3,), expands=(1, 2), stem_width=8,
        stage_widths=(16,), stage_strides=(1,), se=(True,), activations=("relu",), head_widths=(24, 24),
    )  # fmt: skip
    archs = [(0, 0, 0, 0, first, 0, second) for first in (0, 1) for second in (0, 1)]
    for arch in archs:
        parent = trained_like(space, arch, 0)
        for other in archs:
            child = inherit(space, arch, parent, other, seed=0)
            assert child.exact == (arch == other)
            assert str(child.module) == str(space.build(other))
            settle(child.module, space, other, 0)
            assert bool(child.module(smooth_images(space, arch, 4, 0)).isfinite().all())
