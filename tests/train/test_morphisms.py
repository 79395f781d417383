"""Every morphism on chains with groups, depthwise layers and batch normalisation as after training."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from hwnas.errors import SpaceError
from hwnas.spaces.morph_blocks import ConvexSkip
from hwnas.testing.networks import randomise
from hwnas.train.morphisms import (
    concat_skip,
    convex_skip,
    identity_layer,
    insert,
    make_separable,
    prune,
    remove,
    widen,
    without_skip,
)
from hwnas.train.morphisms.views import resized

IMAGES = (6, 3, 10, 10)


def consistent(net: nn.Module, seed: int) -> nn.Module:
    """The statistics of batch normalisation are those of data, as after training."""
    with torch.no_grad():
        for part in range(20):
            net.train()(smooth(part + 20 * seed))
    return net.eval()


def smooth(seed: int) -> Tensor:
    """Images whose neighbouring pixels are alike."""
    coarse = torch.randn(64, 3, 4, 4, generator=rng(seed))
    return nn.functional.interpolate(coarse, IMAGES[2:], mode="bilinear")


def chain(groups: int = 1, pool: bool = True, seed: int = 0) -> nn.Sequential:
    """Stem, a convolution of `groups`, a depthwise and a 1x1 one, a classifier; of random statistics."""
    torch.manual_seed(seed)
    layers: list[tuple[str, nn.Module]] = [
        ("a", nn.Conv2d(3, 8, 3, 1, 1)), ("a_bn", nn.BatchNorm2d(8)), ("a_relu", nn.ReLU()),
        ("b", nn.Conv2d(8, 8, 3, 1, 1, groups=groups, bias=False)), ("b_bn", nn.BatchNorm2d(8)), ("b_relu", nn.ReLU()),
        ("max", nn.MaxPool2d(2)),
        ("d", nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False)), ("d_bn", nn.BatchNorm2d(8)), ("d_act", nn.Hardswish()),
        ("p", nn.Conv2d(8, 12, 1, bias=False)), ("p_bn", nn.BatchNorm2d(12)), ("p_relu", nn.ReLU()),
        *([("pool", nn.AdaptiveAvgPool2d(1))] if pool else []),
        ("flatten", nn.Flatten()), ("fc", nn.Linear(12 if pool else 12 * 25, 5)),
    ]  # fmt: skip
    net = nn.Sequential(OrderedDict(layers)).eval()
    randomise(net)
    return net


def difference(one: nn.Module, other: nn.Module, seed: int = 0) -> float:
    x = torch.randn(IMAGES, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return float((one.eval()(x) - other.eval()(x)).abs().max())


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


EXACT = {
    "insert": lambda net: insert(net, "b_relu", "new", 5),
    "insert grouped": lambda net: insert(net, "a_relu", "new", groups=4),
    "insert depthwise": lambda net: insert(net, "p_relu", "new", groups=12),
    "widen the stem": lambda net: widen(net, "a", 16, generator=rng()),
    "widen into depthwise": lambda net: widen(net, "b", 20, generator=rng()),
    "widen with fresh filters": lambda net: widen(net, "b", 20, copies=False, generator=rng()),
    "widen before the classifier": lambda net: widen(net, "p", 40, generator=rng()),
    "convex skip": lambda net: convex_skip(net, "b", "b_relu"),
    "concat skip": lambda net: concat_skip(net, "p", "p_relu"),
}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("name", EXACT)
def test_exact_morphisms_keep_the_function(name, groups, pool):
    parent = chain(groups, pool)
    child = EXACT[name](parent)
    assert difference(parent, child) < 1e-5
    assert sum(p.numel() for p in child.parameters()) > sum(p.numel() for p in parent.parameters())
    assert difference(parent, chain(groups, pool, seed=1)) > 0.1  # what another network differs by


def test_several_in_a_row_keep_the_function():
    parent = chain(2)
    child = concat_skip(convex_skip(insert(widen(parent, "b", 24, generator=rng()), "b_relu", "new", 5), "new_conv",
                                    "new_activation"), "p", "p_relu")  # fmt: skip
    assert difference(parent, child) < 1e-5
    assert difference(parent, widen(widen(parent, "a", 12, generator=rng()), "a", 24, generator=rng())) < 1e-5


def test_a_concat_in_the_middle_of_a_chain_is_read_with_zeros():
    parent = chain()
    child = concat_skip(parent, "b", "b_relu")
    assert child.d.in_channels == 16
    assert difference(parent, child) < 1e-5
    assert child.p.weight[:, 8:].abs().max() == 0


@pytest.mark.parametrize("name", EXACT)
def test_new_weights_learn(name):
    """At the first step, or at the second where zeros come first, every new weight has a gradient."""
    parent = chain()
    child = EXACT[name](parent).train()
    optimizer = torch.optim.SGD(child.parameters(), lr=0.1)
    grads = {key: torch.zeros_like(value) for key, value in child.named_parameters()}
    for step in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(child(torch.randn(IMAGES, generator=rng(step))), torch.arange(6) % 5).backward()
        optimizer.step()
        for key, value in child.named_parameters():
            grads[key] += value.grad.abs()
    old = dict(parent.named_parameters())
    new = [key for key, value in child.named_parameters() if key not in old or old[key].shape != value.shape]
    assert new
    for key in new:
        rows = grads[key].flatten(1).amax(1) if grads[key].ndim > 1 else grads[key]
        assert (rows > 0).float().mean() > 0.7, key  # some filters are dead on a few images


def test_copies_learn_different_things():
    child = widen(chain(), "p", 24, generator=rng()).train()
    assert torch.equal(child.p.weight[:12].sort(0).values, child.p.weight[12:].sort(0).values)
    nn.functional.cross_entropy(child(torch.randn(IMAGES)), torch.arange(6) % 5).backward()
    grad = child.p_bn.weight.grad
    twin = [int((child.p.weight[12:] == row).flatten(1).all(1).nonzero()) + 12 for row in child.p.weight[:12]]
    assert ((grad[:12] - grad[twin]).abs() > 1e-3 * grad.abs().max()).sum() > 6


def test_an_inserted_layer_keeps_the_function_in_training_too_as_far_as_statistics_say():
    """With the statistics that its input is likely to have, training starts near the identity."""
    torch.manual_seed(0)
    z = torch.randn(64, 6, 8, 8) * torch.tensor([0.3, 1, 2, 1, 1, 1])[:, None, None]
    z = z + torch.tensor([0.5, 0.0, -1.0, 1.0, 2.0, -0.5])[:, None, None]
    x = z.relu()
    parent = nn.Sequential(OrderedDict(conv=nn.Conv2d(6, 6, 1), bn=nn.BatchNorm2d(6), relu=nn.ReLU()))
    with torch.no_grad():
        parent.bn.weight.copy_(torch.tensor([0.3, 1, 2, 1, 1, 1]))
        parent.bn.bias.copy_(torch.tensor([0.5, 0.0, -1.0, 1.0, 2.0, -0.5]))
    informed, plain = insert(parent, "relu", "new")[3:].train(), identity_layer(6).train()
    with torch.no_grad():
        assert (informed(x) - x).abs().mean() < 0.02 < 0.1 < (plain(x) - x).abs().mean()


APPROXIMATE = {
    "remove": lambda net: remove(net, "a"),
    "remove the last": lambda net: remove(net, "p"),
    "prune": lambda net: prune(net, "p", 8),
    "prune into depthwise": lambda net: prune(net, "b", 4),
    "separable": lambda net: make_separable(net, "a"),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_morphisms_stay_close(name):
    """Over several networks, the child's logits follow the parent's; those of a fresh network of its shape do not."""
    found, chance = [], []
    for seed in range(6):
        parent = consistent(chain(4 if name == "prune into depthwise" else 1, seed=seed), seed)
        child = APPROXIMATE[name](parent)
        assert str(child) != str(parent)
        found.append(correlation(parent, child))
        chance.append(correlation(parent, fresh(child, seed)))
    assert sum(found) / 6 > 0.3
    assert sum(found) / 6 > sum(chance) / 6 + 0.2


def fresh(net: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed + 100)
    net = copy.deepcopy(net)
    for layer in net.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    randomise(net)
    return consistent(net, seed)


def correlation(one: nn.Module, other: nn.Module) -> float:
    x = smooth(5)
    with torch.no_grad():
        a, b = (net.eval()(x) for net in (one, other))
    a, b = (logits - logits.mean(0) for logits in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_prune_keeps_the_largest_filters():
    parent = chain()
    child = prune(parent, "p", 3)
    norms = parent.p.weight.detach().abs().sum((1, 2, 3))
    kept = norms.argsort(descending=True)[:3].sort().values
    assert torch.equal(child.p.weight, parent.p.weight[kept])
    assert torch.equal(child.p_bn.running_var, parent.p_bn.running_var[kept])
    assert child.fc.in_features == 3


def test_kernels_of_another_size():
    weight = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    larger, smaller = resized(weight, 7), resized(weight, 3)
    assert torch.equal(larger[:, :, 1:-1, 1:-1], weight)
    torch.testing.assert_close(larger.sum((2, 3)), weight.sum((2, 3)))
    torch.testing.assert_close(smaller.sum((2, 3)), weight.sum((2, 3)))
    assert torch.equal(smaller[:, :, 1, 1], weight[:, :, 2, 2])
    torch.testing.assert_close(smaller[:, :, 0, 0], weight[:, :, :2, :2].sum((2, 3)))
    assert torch.equal(resized(larger, 5), weight)


def test_a_separable_convolution_of_rank_one_is_exact():
    parent = chain()
    with torch.no_grad():
        parent.a.weight.copy_(torch.randn(8, 3, 1, 1) * torch.randn(1, 3, 3, 3))
    child = make_separable(parent, "a")
    assert difference(parent, child) < 1e-5
    assert child.a_depthwise.groups == 3


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.2])
def test_a_convex_skip_out(mix):
    torch.manual_seed(0)
    layer = identity_layer(4)
    randomise(layer)
    skip = ConvexSkip(layer, mix).eval()
    x = torch.rand(2, 4, 5, 5)
    alone = without_skip(skip).eval()
    torch.testing.assert_close(alone(x), max(0.0, 1 - mix) * layer(x))
    combined: Tensor = torch.relu((1 - mix) * layer(x) + mix * x)
    torch.testing.assert_close(skip(x), combined)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: widen(net, "zzz", 16, generator=rng()), "no layer 'zzz'; its layers: a, a_bn"),
        (lambda net: widen(net, "a_bn", 16, generator=rng()), "must be a convolution that mixes channels"),
        (lambda net: widen(net, "d", 16, generator=rng()), "change the one before it"),
        (lambda net: widen(net, "b", 8, generator=rng()), "wider is more than these"),
        (lambda net: widen(net, "a", 9, generator=rng()), "a multiple of 2"),
        (lambda net: widen(net[:3], "a", 9, generator=rng()), "no layer of the chain reads"),
        (lambda net: prune(net, "a", 8), "it can keep fewer"),
        (lambda net: prune(net, "a", 0), "a positive multiple of 2"),
        (lambda net: remove(net, "fc"), "must be a convolution that mixes"),
        (lambda net: remove(net[3:5], "b"), "no layer of the chain reads"),
        (lambda net: remove(net, "b"), "cannot read the layers before a removed one"),
        (lambda net: insert(net, "a_bn", "new"), "behind a convolution and its ReLU"),
        (lambda net: insert(net, "a_relu", "new", groups=3), "groups must divide the 8 channels, got 3"),
        (lambda net: convex_skip(net, "p", "p_relu"), "'p' reads 8, 'p_relu' gives 12"),
        (lambda net: convex_skip(net, "b", "b_bn"), "to a later ReLU"),
        (lambda net: make_separable(net, "b"), "without groups"),
        (lambda net: make_separable(net, "p"), "larger than 1x1"),
        (lambda net: without_skip(ConvexSkip(nn.Sequential(nn.ReLU()))), "end with batch normalisation and ReLU"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(change, message):
    with pytest.raises(SpaceError, match=message):
        change(chain(2))
