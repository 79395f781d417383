"""Children of `morph` with their parents' weights, for every kind of step: exact where a morphism is, else close."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn
from trained_like import correlation, difference, settle, smooth_images, trained_like

from hwnas.errors import SpaceError
from hwnas.space import Arch, rows_of
from hwnas.spaces.morph import MorphSpace
from hwnas.spaces.morph_blocks import ConcatSkip, ConvexSkip
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.train.inherit import Inherited, inherit

SPACE = MorphSpace(num_classes=5, resolution=12, widths=(4, 8, 12, 16, 24), stages=2, max_depth=3)
LIMIT = 1e-5  # logits vary by 1


def archs(count: int, seed: int) -> list[Arch]:
    return rows_of(SPACE.sample(count, np.random.default_rng(seed)))


def is_exact(clause: str) -> bool:
    """What the paper, or Net2Net, says of a change."""
    numbers = re.search(r"(width|kernel) (\d+) -> (\d+)", clause)
    if numbers:
        return int(numbers[3]) > int(numbers[2])
    return clause.endswith(("inserted", "separable -> plain", "none -> convex", "none -> concat"))


@pytest.fixture(scope="module")
def family() -> list[tuple[Arch, nn.Module, Arch, Inherited]]:
    """Parents with all of their neighbours as children."""
    found = []
    for seed, arch in enumerate(archs(8, 0)):
        parent = trained_like(SPACE, arch, seed)
        found += [
            (arch, parent, child, inherit(SPACE, arch, parent, child, seed=seed))
            for child in rows_of(SPACE.neighbours(arch))
        ]
    return found


def test_every_step_is_exact_or_not_as_its_kind_says(family):
    kinds = defaultdict(int)
    for arch, parent, _, child in family:
        clauses = child.step.split("; ")
        assert child.exact == all(map(is_exact, clauses)), child.step
        images = smooth_images(SPACE, arch, 8, 5)
        assert (difference(parent, child.module, images) < LIMIT) == child.exact, child.step
        for clause in clauses:
            kinds[re.sub(r"stage \d: layer \d |\d+ -> \d+", "", clause), is_exact(clause)] += 1
    assert {kind for kind, _ in kinds} == {
        "stem width ", "inserted", "removed", "width ", "kernel ",
        "convolution plain -> separable", "convolution separable -> plain",
        "skip none -> convex", "skip none -> concat", "skip convex -> none", "skip concat -> none",
    }  # fmt: skip
    assert {exact for kind, exact in kinds if kind in ("width ", "stem width ", "kernel ")} == {True, False}


def test_children_are_the_networks_asked_for(family):
    for _, _, arch, child in family:
        fresh = SPACE.build(arch)
        assert str(child.module) == str(fresh)
        assert [(k, v.shape, v.dtype) for k, v in child.module.state_dict().items()] == [
            (k, v.shape, v.dtype) for k, v in fresh.state_dict().items()
        ]
        assert all(bool(value.isfinite().all()) for value in child.module.state_dict().values())
        assert all(parameter.requires_grad for parameter in child.module.parameters())


def test_approximate_children_follow_their_parents(family):
    """More than fresh networks of the same architecture do, for every kind of step."""
    found, chance = defaultdict(list), []
    for number, (arch, parent, child_arch, child) in enumerate(family):
        if child.exact:
            continue
        images = smooth_images(SPACE, arch, 64, 6)
        for kind in re.findall("removed|width|kernel|separable|convex -> none|concat -> none", child.step):
            found[kind].append(correlation(parent, child.module, images))
        if number % 5 == 0:
            chance.append(correlation(parent, trained_like(SPACE, child_arch, 100 + number), images))
    assert len(found) == 6
    for kind, values in found.items():
        assert np.mean(values) > max(0.3, abs(np.mean(chance)) + 0.2), (kind, values)


def test_what_is_untouched_is_the_parents(family):
    for arch, parent, _, child in family:
        names = {name for name, _ in child.module.named_parameters()}
        assert set(child.untouched) < names, child.step
        assert len(set(child.untouched)) == len(child.untouched)
        values = {float(p.detach().double().abs().sum()) for p in parent.parameters()}
        parameters = dict(child.module.named_parameters())
        assert all(float(parameters[name].detach().double().abs().sum()) in values for name in child.untouched)
        # a step concerns a layer, what is tied to it and what reads it
        if ";" not in child.step and len(SPACE.blocks(arch)) > 6:
            assert len({name.split(".")[0] for name in names - set(child.untouched)}) <= 2, child.step


def test_untouched_layers_by_name():
    arch = chain([(8, 3), (12, 3)], [(8, 3), (8, 3)])
    parent = trained_like(SPACE, arch, 0)
    wider = chain([(16, 3), (12, 3)], [(8, 3), (8, 3)])
    touched = {"stage0_1", "stage0_2"}
    child = inherit(SPACE, arch, parent, wider, seed=0)
    assert child.step == "stage 0: layer 0 width 8 -> 16"
    names = {name.split(".")[0] for name, _ in child.module.named_parameters()}
    assert {name.split(".")[0] for name in child.untouched} == names - touched
    removed = inherit(SPACE, arch, parent, chain([(12, 3)], [(8, 3), (8, 3)]), seed=0)
    assert removed.step == "stage 0: layer 0 removed"
    assert {name.split(".")[0] for name in removed.untouched} == {"stem", "stage1_1", "stage1_2", "head"}


def chain(*stages: list[tuple[int, int]], stem: int = 8) -> Arch:
    """The architecture of plain layers without skips: width and kernel."""
    choice = SPACE.describe((0,) * len(SPACE.slots)) | {"stem.width": stem}
    for stage, layers in enumerate(stages):
        choice[f"stage{stage}.depth"] = len(layers)
        for place, (width, kernel) in enumerate(layers, SPACE.max_depth - len(layers)):
            choice |= {f"stage{stage}.{place}.width": width, f"stage{stage}.{place}.kernel": kernel}
    return SPACE.arch_of(choice)


def test_walks_of_exact_steps_end_where_they_began():
    """Steps one after another, and all of them at once."""
    rng = np.random.default_rng(3)
    at_once = 0
    for seed, arch in enumerate(archs(6, 4)):
        parent = trained_like(SPACE, arch, seed)
        images = smooth_images(SPACE, arch, 8, 5)
        now, module = arch, parent
        for _ in range(6):
            near = rows_of(rng.permutation(SPACE.neighbours(now)))
            children = (inherit(SPACE, now, module, other, seed=seed) for other in near)
            child, now = next((child, other) for child, other in zip(children, near, strict=False) if child.exact)
            module = child.module.eval()
        assert difference(parent, module, images) < LIMIT
        direct = inherit(SPACE, arch, parent, now, seed=seed)
        at_once += direct.exact
        if direct.exact:
            assert difference(parent, direct.module, images) < LIMIT
    assert at_once >= 4


def test_any_two_architectures():
    pairs = list(zip(archs(40, 5), archs(40, 6), strict=True))
    exact = 0
    for seed, (arch, other) in enumerate(pairs):
        parent = trained_like(SPACE, arch, seed)
        child = inherit(SPACE, arch, parent, other, seed=seed)
        exact += child.exact
        images = smooth_images(SPACE, arch, 8, 5)
        assert (difference(parent, child.module, images) < LIMIT) == child.exact, child.step
    arch, other = chain([(4, 3)], [(4, 3)], stem=4), chain([(8, 5), (8, 3), (24, 5)], [(24, 3), (24, 3), (16, 3)])
    parent = trained_like(SPACE, arch, 0)
    child = inherit(SPACE, arch, parent, other, seed=0)
    assert child.exact
    assert difference(parent, child.module, smooth_images(SPACE, arch, 8, 5)) < LIMIT


def test_the_same_architecture_is_a_copy():
    arch = archs(1, 0)[0]
    parent = trained_like(SPACE, arch, 0)
    child = inherit(SPACE, arch, parent, arch, seed=1)
    assert child.exact
    assert child.step == "the same architecture"
    assert child.untouched == tuple(name for name, _ in parent.named_parameters())
    for key, value in parent.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, child.module.state_dict()[key])
            assert value.data_ptr() != child.module.state_dict()[key].data_ptr()


def test_parents_and_the_random_state_stay_and_the_seed_decides():
    arch, other = chain([(8, 3)], [(8, 3)]), chain([(16, 3)], [(8, 3)])
    parent = trained_like(SPACE, arch, 0).train()
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    state = torch.get_rng_state()
    first, second, third = (inherit(SPACE, arch, parent, other, seed=seed).module.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert parent.training
    assert all(torch.equal(value, before[key]) for key, value in parent.state_dict().items())
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not all(torch.equal(value, third[key]) for key, value in first.items())
    with pytest.raises(SpaceError, match="slots"):
        inherit(SPACE, arch, parent, other[:-1], seed=0)


def test_new_weights_get_gradients(family):
    """At the first step, or the second where zeros come first, whatever an exact step brought learns."""
    tried = defaultdict(int)
    for arch, _, _, child in family:
        kind = re.sub(r"\d+", "", child.step)
        if not child.exact or tried[kind] > 2:
            continue
        tried[kind] += 1
        module = child.module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        grads = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
        for step in range(2):
            images = smooth_images(SPACE, arch, 16, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), torch.arange(16) % 5).backward()
            optimizer.step()
            for name, value in module.named_parameters():
                grads[name] += value.grad.abs()
        for name, grad in grads.items():
            if name not in child.untouched:
                assert (grad > 0).float().mean() > 0.5, (child.step, name)
    assert len(tried) >= 8


def test_skips_start_as_the_layer_alone():
    arch = chain([(8, 3)], [(8, 3)])
    parent = trained_like(SPACE, arch, 0)
    names = {"convex": (ConvexSkip, 8), "concat": (ConcatSkip, 16)}
    for skip, (kind, width) in names.items():
        choice = SPACE.describe(arch) | {"stage0.2.skip": skip, "stage0.2.width": width}
        module = inherit(SPACE, arch, parent, SPACE.arch_of(choice), seed=0).module
        assert isinstance(module.stage0_2, kind)
        if skip == "convex":
            assert float(module.stage0_2.mix.detach()) == 0
        else:
            assert module.stage1_2.conv.weight[:, 8:].abs().max() == 0


def test_pruning_keeps_the_largest_filters():
    arch, other = chain([(16, 3)], [(8, 3)]), chain([(8, 3)], [(8, 3)])
    parent = trained_like(SPACE, arch, 0)
    child = inherit(SPACE, arch, parent, other, seed=0).module
    kept = parent.stage0_2.conv.weight.detach().abs().sum((1, 2, 3)).argsort(descending=True)[:8].sort().values
    assert torch.equal(child.stage0_2.conv.weight, parent.stage0_2.conv.weight[kept])
    assert torch.equal(child.stage0_2.bn.running_var, parent.stage0_2.bn.running_var[kept])


def test_training_goes_on_from_an_inserted_layer():
    """Batch normalisation of new layers has statistics near those of its input, so the batch's own change little."""
    arch, other = chain([(8, 3)], [(8, 3)]), chain([(8, 3), (8, 3)], [(8, 3)])
    found, chance = [], []
    for seed in range(6):
        parent = trained_like(SPACE, arch, seed)
        child = inherit(SPACE, arch, parent, other, seed=0).module
        images = smooth_images(SPACE, arch, 64, 5)
        settle(child, SPACE, other, seed)
        found.append(correlation(parent, child, images))
        chance.append(correlation(parent, trained_like(SPACE, other, 50 + seed), images))
    assert np.mean(found) > 0.95
    assert np.mean(chance) < 0.5


class TestOtherSpaces:
    """What has the same name and shape is taken over."""

    SPACE = NasBench201Space(channels=4, cells=1, resolution=8)

    def test_a_cell_with_one_other_edge(self):
        arch, other = (3, 3, 3, 3, 3, 3), (3, 3, 3, 3, 2, 3)
        parent = trained_like(self.SPACE, arch, 0)
        child = inherit(self.SPACE, arch, parent, other, seed=0)
        assert child.step == "edge13 nor_conv_3x3 -> nor_conv_1x1"
        assert not child.exact
        touched = {name for name, _ in child.module.named_parameters()} - set(child.untouched)
        assert touched
        assert all(".edge13." in name for name in touched)
        for name, value in child.module.named_parameters():
            if name not in touched:
                assert torch.equal(value, parent.get_parameter(name))

    def test_the_same_cell(self):
        arch = (3, 1, 2, 4, 2, 3)
        parent = trained_like(self.SPACE, arch, 0)
        child = inherit(self.SPACE, arch, parent, arch, seed=0)
        assert child.exact
        assert difference(parent, child.module, smooth_images(self.SPACE, arch, 4, 0)) == 0
