"""The scores that one or two backward passes give."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from hwnas.errors import DataError
from hwnas.zeroshot import DegenerateNetworkError, compute_scores, load_score
from hwnas.zeroshot.gradients import loss_gradients
from hwnas.zeroshot.jacob_cov import spread
from hwnas.zeroshot.probe import Probe
from hwnas.zeroshot.zico import zico

WITH_LABELS = ("snip", "grad_norm", "fisher", "grasp", "zico")
NAMES = (*WITH_LABELS, "synflow", "jacob_cov")


def score(name, net, images, labels=None):
    return load_score(name)(Probe(net, images, labels))


def every_score(net, images, labels):
    return [score(name, net, images, labels) for name in NAMES]


def linear(*weights):
    """Bias-free layers with the given rows of weights, on flattened images."""
    layers = []
    for rows in weights:
        layers.append(nn.Linear(len(rows[0]), len(rows), bias=False))
        layers[-1].weight.data = torch.tensor(rows)
    return nn.Sequential(nn.Flatten(), *layers)


@pytest.mark.parametrize("name", ["snip", "grad_norm", "fisher", "grasp", "jacob_cov"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("inplace", [False, True])
def test_as_published(tinynet, images, labels, published, name, memory_format, inplace):
    net = tinynet(partial(nn.ReLU, inplace=inplace)).to(memory_format=memory_format)
    value = score(name, net, images.contiguous(memory_format=memory_format), labels)
    assert value == pytest.approx(published[f"{name}_tinynet"], rel=1e-4)


def test_synflow_as_published(tinynet, images, published):
    assert math.exp(score("synflow", tinynet(), images)) == pytest.approx(published["synflow_tinynet"], rel=1e-9)


def test_zico_as_published(tinynet, images, labels, arrays, published):
    more_images = torch.from_numpy(arrays["X2"].copy()).to(images.device)
    value = zico(tinynet(), images, labels, more_images, (labels + 3) % 10)
    assert value == pytest.approx(published["zico_tinynet"], rel=1e-4)


def test_zico_takes_the_halves_of_the_batch(tinynet, images, labels):
    images = Probe(tinynet(), images).images  # with channels last, on a CPU
    halves = zico(tinynet(), images[:8], labels[:8], images[8:], labels[8:])
    assert score("zico", tinynet(), images, labels) == halves


LOG3 = math.log(3)


@pytest.mark.parametrize(
    ("name", "classes", "by_hand"),
    # logits (log 3, 0), so probabilities (3/4, 1/4), and gradients of the two images (-1/4, 1/4) and (3/4, -3/4)
    [
        ("snip", [0, 1], LOG3 / 4),
        ("grad_norm", [0, 1], math.hypot(1, 1) / 4),
        ("fisher", [0, 1], (LOG3**2 / 64 + 9 * LOG3**2 / 64) / 4),
        ("grasp", [0, 1], -LOG3 * 3 / 32),  # H = 3/16 ((1, -1), (-1, 1))
        ("zico", [0, 0, 0, 1], math.log(2)),  # gradients of the halves (-1/4, 1/4) and (1/4, -1/4)
    ],
)
def test_by_hand(name, classes, by_hand):
    net, images = linear([[LOG3], [0.0]]), torch.ones(len(classes), 1, 1, 1)
    assert score(name, net, images, torch.tensor(classes)) == pytest.approx(by_hand, rel=1e-5)


def test_synflow_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(inplace=True), nn.Conv2d(1, 1, 1, bias=False))
    for part, value in ((net[0].weight, -2), (net[0].bias, -1), (net[1].running_mean, 7), (net[3].weight, 3)):
        nn.init.constant_(part, value)
    # R = 3 (2 + 1): 6 of it by the first weight, 9 by the second
    assert score("synflow", net, torch.rand(2, 1, 1, 1)) == pytest.approx(math.log(15), rel=1e-12)


@pytest.mark.parametrize("weight", [1e4, 1e-4])
@pytest.mark.parametrize("depth", [10, 120])
def test_synflow_has_no_limit_in_float64(weight, depth):
    net = linear(*[[[weight]]] * depth)  # 120 layers: 1e480 or 1e-480
    exact = math.log(depth) + depth * math.log(float(torch.tensor(weight)))
    assert score("synflow", net, torch.ones(2, 1, 1, 1)) == pytest.approx(exact, rel=1e-12)


def test_synflow_beyond_float64_needs_activations_that_scale():
    def deep(activation):
        return nn.Sequential(*(part for layer in linear(*[[[1e4]]] * 120) for part in (layer, activation())))

    assert math.isfinite(score("synflow", deep(nn.ReLU), torch.ones(2, 1, 1, 1)))
    with pytest.raises(DegenerateNetworkError, match="do not scale"):
        score("synflow", deep(nn.SiLU), torch.ones(2, 1, 1, 1))


class Squares(nn.Module):
    """The input gradient of an image is twice the image."""

    def forward(self, x):
        return x.square().flatten(1)


def test_jacob_cov_by_hand():
    net, k = Squares(), 1e-5
    one, other = torch.tensor([1.0, 1, 0, 0]).view(1, 2, 2), torch.tensor([1.0, 0, 1, 0]).view(1, 2, 2)
    apart = score("jacob_cov", net, torch.stack([one, other]))  # no correlation: eigenvalues 1 and 1
    equal = score("jacob_cov", net, torch.stack([one, one]))  # 2 and 0
    assert apart == pytest.approx(-2 * (math.log(1 + k) + 1 / (1 + k)), rel=1e-9)
    assert equal == pytest.approx(-(math.log(2 + k) + 1 / (2 + k) + math.log(k) + 1 / k), rel=1e-6)
    with pytest.raises(DegenerateNetworkError, match="image 1 is constant"):
        score("jacob_cov", net, torch.stack([one, torch.ones(1, 2, 2)]))
    with pytest.raises(DegenerateNetworkError, match="NaN"):
        spread(torch.tensor([[1.0, 2], [math.nan, 0]]))


def test_what_follows_a_convolution_may_work_in_place(images, labels):
    def vgg(inplace):
        torch.manual_seed(0)
        act = partial(nn.ReLU, inplace=inplace)
        body = [nn.Conv2d(3, 6, 3), act(), nn.Conv2d(6, 6, 3, groups=3), act(), nn.MaxPool2d(2), nn.Flatten()]
        return nn.Sequential(*body, nn.Linear(6 * 36, 12), act(), nn.Linear(12, 10))

    assert every_score(vgg(True), images, labels) == every_score(vgg(False), images, labels)


def test_grasp_differentiates_attention_twice(images, labels):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(256, 16), nn.Linear(48, 10)

        def forward(self, x):
            x = self.embed(x.flatten(2)).unsqueeze(1)
            return self.head(nn.functional.scaled_dot_product_attention(x, x, x).flatten(1))

    assert math.isfinite(score("grasp", Attention(), images, labels))


class Mobile(nn.Module):
    """Hard-swish, a gate, a frozen weight, groups, maps of one pixel, layers that are not used."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.SiLU(), nn.Conv2d(4, 8, 1))
        self.unused = nn.Linear(3, 3)
        self.head = nn.Sequential(nn.Conv2d(8, 10, 8), nn.BatchNorm2d(10), nn.GELU(), nn.Flatten(), nn.Dropout())

    def forward(self, x):
        x = nn.functional.hardswish(self.depthwise(self.stem(x)), inplace=True)
        return self.head(x * nn.functional.hardsigmoid(self.squeeze(x)))


def test_mobile_networks(images, labels):
    torch.manual_seed(0)
    net = Mobile()
    values = every_score(net, images, labels)
    assert all(math.isfinite(value) for value in values)
    assert every_score(net.requires_grad_(False), images, labels) == values  # frozen weights count
    assert not any(parameter.requires_grad for parameter in net.parameters())
    with torch.no_grad():
        assert every_score(net, images, labels) == values


def test_a_weight_of_two_layers_counts_once(images, labels):
    tied = nn.Sequential(nn.Flatten(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 768))
    tied[3].weight = tied[1].weight
    found = Probe(tied, images, labels).shared(loss_gradients)
    assert len(found.weights) == len(found.gradients) == 1
    assert len(found.responses) == 2


def test_channels_of_a_linear_layer_come_last(images, labels):
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(256, 5), nn.Flatten(), nn.Linear(15, 10))
    responses = Probe(tokens, images, labels).shared(loss_gradients).responses
    assert [response.shape for response in responses] == [(16, 5), (16, 10)]


def test_one_pass_serves_three_scores(tinynet, images, labels):
    net, forwards = tinynet(), []
    net.register_forward_pre_hook(lambda *_: forwards.append(1))
    compute_scores(["snip", "grad_norm", "fisher"], net, images, labels)
    assert len(forwards) == 1


def dead(net):
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def poisoned(net):
    nn.init.constant_(net.conv3.weight, math.nan)
    return net


@pytest.mark.parametrize(
    ("network", "reason", "names"),
    [
        (dead, "the network is dead|does not see it", NAMES),
        (poisoned, "nan|NaN", NAMES),
        (lambda net: net.act1, "ReLU has no Conv2d", (*WITH_LABELS, "synflow")),
    ],
)
def test_what_cannot_be_scored_is_a_reason(tinynet, images, labels, network, reason, names):
    for name in names:
        with pytest.raises(DegenerateNetworkError, match=reason):
            score(name, network(tinynet()), images, labels)


@pytest.mark.parametrize("name", WITH_LABELS)
def test_wrong_batches(tinynet, images, labels, name):
    net = tinynet()
    assert math.isfinite(score(name, net, images, labels.int()))
    with pytest.raises(DegenerateNetworkError, match="needs the labels"):
        score(name, net, images)
    with pytest.raises(DegenerateNetworkError, match="two images"):
        score(name, net, images[:1], labels[:1])
    with pytest.raises(DegenerateNetworkError, match=r"logits .* gives \(\d+, 8, 16, 16\)"):
        score(name, net.conv1, images, labels)
    with pytest.raises(DataError, match="labels"):
        score(name, net, images, labels[:-1])
    with pytest.raises(DataError, match=r"for a network of 10 classes"):
        score(name, net, images, labels + 10)
