"""One forward for all scores that need one."""

from __future__ import annotations

import math
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from hwnas.zeroshot import SCORES, DegenerateNetworkError, compute_scores, observers_of
from hwnas.zeroshot.forward import Observer, observe
from hwnas.zeroshot.probe import Probe

NAMES = (
    *("naswot", "swap", "linear_regions", "near", "meco"),
    *("expressivity", "progressivity", "trainability", "jacob_cov", "shortest_path"),
)


def counted(net):
    forwards = []
    net.register_forward_pre_hook(lambda *_: forwards.append(1))
    return net, forwards


def test_one_forward_serves_all_that_see_one(tinynet, images):
    assert {name for name in SCORES if observers_of(name)} == set(NAMES)
    net, forwards = counted(tinynet())
    results = compute_scores(NAMES, net, images)
    assert len(forwards) == 1
    assert set(results) == set(NAMES)
    compute_scores(("meco", "params", "near"), net, images)
    assert len(forwards) == 2


class Block(nn.Module):
    """Pre-activation in place, of a view; a gate in place; a residual link."""

    def __init__(self, stride):
        super().__init__()
        self.bn, self.conv, self.gate = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, stride, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = F.relu_(self.bn(x).transpose(2, 3)).transpose(2, 3)
        y = self.conv(x)
        y = F.silu(y.mul_(torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))), inplace=True)
        return (y + x if y.shape == x.shape else y).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def in_place(normalised):
    body = [nn.ReLU(inplace=True), nn.Conv2d(3, 8, 3), *(Block(stride) for stride in (1, 2, 1))]
    norm = nn.BatchNorm2d(8) if normalised else nn.Identity()
    return nn.Sequential(*body, norm, nn.Hardswish(inplace=True), nn.Flatten(), nn.LazyLinear(4))


def transformer():
    layer = partial(nn.TransformerEncoderLayer, 16, 2, 32, dropout=0.5, batch_first=True)
    patches = [nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 1), nn.Flatten(2)]
    tokens = [layer(activation=F.gelu), layer(), nn.Flatten(), nn.Linear(64 * 16, 4)]
    return nn.Sequential(*patches, Transposed(), *tokens)


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


@pytest.mark.parametrize(
    "network",
    [
        partial(in_place, True),
        partial(in_place, False),
        transformer,
        partial(models.mobilenet_v3_small, weights=None),
        partial(models.densenet121, weights=None),
    ],
)
def test_company_changes_no_bit(network):
    torch.manual_seed(0)
    net, images = network(), torch.randn(4, 3, 32, 32)
    net(images)
    before = images.clone()
    together = compute_scores(NAMES, net, images)
    assert torch.equal(images, before)
    for name in NAMES:
        (alone,) = compute_scores([name], net, images).values()
        assert (together[name].value, together[name].reason) == (alone.value, alone.reason), name
        assert alone.reason is None
        assert math.isfinite(alone.value)


# what an observer sees


class Notes(Observer):
    """What it was shown, as numbers."""

    def __init__(self, probe):
        self.activations, self.outputs = [], []

    def saw_activation_input(self, values):
        self.activations.append(values.flatten().tolist())

    def saw_activation(self, output):
        self.activations.append(output.flatten().tolist())

    def saw_output(self, part, output):
        assert not output.is_inference()
        self.outputs.append((type(part).__name__, output.flatten().tolist()))

    def finish(self, images, logits):
        return self.activations, self.outputs, logits.flatten().tolist()


class Keeper(Observer):
    """Keeps every map that it can get hold of."""

    def __init__(self, probe):
        self.kept = []

    def saw_call(self, part, inputs, output):
        self.kept.append(output)
        return True

    def finish(self, images, logits):
        return [kept.flatten().tolist() for kept in self.kept]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("company", [(), (Keeper,)])
def test_values_are_seen_once_and_before_they_change(inplace, company):
    class Doubles(nn.Module):
        def forward(self, x):
            return x.mul_(2) if inplace else x * 2

    images = torch.tensor([1.0, -2]).view(2, 1, 1, 1)
    net = nn.Sequential(nn.Identity(), Doubles(), nn.Sequential(nn.ReLU(inplace), nn.Identity()), Doubles())
    activations, outputs, logits = Probe(net, images, planned=company).seen(Notes)
    assert activations == [[2, -4], [2, 0]]
    assert outputs == [("Doubles", [2, -4]), ("ReLU", [2, 0]), ("Doubles", [4, 0])]
    assert logits == [4, 0]
    assert images.flatten().tolist() == [1, -2]


def test_what_is_kept_stays():
    images = torch.tensor([1.0, -2]).view(2, 1, 1, 1)
    kept = Probe(nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)), images).seen(Keeper)
    assert kept == [[1, -2], [1, 0], [1, 0]]  # the last of the container


class NeedsGraph(Observer):
    needs_graph = True

    def finish(self, images, logits):
        (gradient,) = torch.autograd.grad(logits, images, torch.ones_like(logits), retain_graph=True)
        return gradient


class Plain(Observer):
    def finish(self, images, logits):
        assert not torch.is_grad_enabled()
        return logits.requires_grad, images.requires_grad


def test_a_graph_is_recorded_only_for_those_who_need_it(tinynet, images):
    net = tinynet()
    assert Probe(net, images).seen(Plain) == (False, False)
    probe = Probe(net, images, planned=[Plain, NeedsGraph])
    assert probe.seen(Plain) == (True, True)
    with torch.no_grad():
        assert torch.equal(Probe(net, images).seen(NeedsGraph), probe.seen(NeedsGraph))
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("poisoned", [False, True])
def test_no_map_outlives_the_forward(tinynet, images, poisoned):
    net, maps = tinynet(), []
    if poisoned:  # the exceptions of those that refuse could keep what they saw
        nn.init.constant_(net.conv3.weight, math.nan)
    for part in net.modules():
        part.register_forward_hook(lambda part, inputs, output: maps.append(weakref.ref(output)))
    kinds = dict.fromkeys(kind for name in NAMES for kind in observers_of(name))
    found = observe(Probe(net, images), kinds)
    assert set(found) == set(kinds)
    assert any(isinstance(value, DegenerateNetworkError) for value in found.values()) == poisoned
    assert maps
    assert not any(map() is not None for map in maps)


# refusals


def refusing(method):
    def refuse(self, *_):
        raise DegenerateNetworkError(f"refused in {method}")

    return type("Refusing", (Observer,), {method: refuse, "finish": refuse} | {"needs_graph": True})


METHODS = ("__init__", "saw_activation_input", "saw_activation", "saw_output", "saw_call", "finish")


@pytest.mark.parametrize("method", METHODS)
def test_a_refusal_concerns_nobody_else(method, tinynet, images):
    expected = Probe(tinynet(), images).seen(Notes)
    kind = refusing(method)
    net, forwards = counted(tinynet())
    probe = Probe(net, images, planned=[kind, Notes])
    for _ in range(2):
        with pytest.raises(DegenerateNetworkError, match=f"refused in {method}"):
            probe.seen(kind)
        assert probe.seen(Notes) == expected
    assert len(forwards) == 1


def test_nobody_left_needs_no_forward(tinynet, images):
    net, forwards = counted(tinynet())
    kind = refusing("__init__")
    with pytest.raises(DegenerateNetworkError, match="refused"):
        Probe(net, images).seen(kind)
    assert not forwards


def test_what_the_network_refuses_concerns_all():
    net, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), torch.rand(1, 3, 3, 3)
    net, forwards = counted(net)
    early = refusing("saw_activation")
    probe = Probe(net, images, planned=[Notes, early])
    with pytest.raises(DegenerateNetworkError, match="refused in saw_activation"):
        probe.seen(early)
    for kind in (Notes, Notes):
        with pytest.raises(DegenerateNetworkError, match="single value"):
            probe.seen(kind)
    assert len(forwards) == 1


def test_errors_of_the_network_are_not_hidden(tinynet, images):
    net = tinynet()
    probe = Probe(net, images[:, :2], planned=[Notes])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="channels"):
            probe.seen(Plain)
    assert not any(part._forward_hooks for part in net.modules())


def test_what_does_not_depend_on_the_images_is_a_reason():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.arange(float(x.numel())).to(x).view_as(x)

    net = nn.Sequential(Constant(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten())
    results = compute_scores(NAMES, net, torch.rand(4, 3, 8, 8))
    assert "does not depend on" in results["trainability"].reason
    assert "does not see it" in results["jacob_cov"].reason
    assert results["near"].value > 1
    assert results["meco"].value > 0


# channels last


class Views(nn.Module):
    """Works with contiguous maps only."""

    def forward(self, x):
        return x.view(len(x), -1)


def test_networks_that_cannot_have_channels_last_are_given_images_as_they_came():
    def net(flatten):
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, 2), nn.ReLU()]
        return nn.Sequential(*body, flatten, nn.Linear(36, 4))

    images, labels = torch.randn(6, 3, 9, 9), torch.arange(6) % 4
    found = compute_scores(SCORES, net(Views()), images, labels)
    expected = compute_scores(SCORES, net(nn.Flatten()), images, labels)
    for name, result in expected.items():
        assert result.value is not None, name
        assert found[name].value == pytest.approx(result.value, rel=0.05 if name == "ntk" else 1e-3, abs=1e-6), name
        (alone,) = compute_scores([name], net(Views()), images, labels).values()
        assert alone.value == found[name].value, name


def test_the_error_of_the_images_as_they_came_is_told():
    class Complains(nn.Module):
        def forward(self, x):
            raise RuntimeError(f"contiguous: {x.is_contiguous()}")

    for name in ("naswot", "zen", "macs", "ntk"):
        with pytest.raises(RuntimeError, match="contiguous: True"):
            compute_scores([name], nn.Sequential(Complains(), nn.Linear(4, 4)), torch.rand(2, 3, 4, 4))
