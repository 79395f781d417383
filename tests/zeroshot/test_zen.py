from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hwnas.zeroshot import DegenerateNetworkError, zen
from hwnas.zeroshot.probe import Probe, normal_like
from hwnas.zeroshot.zen import draw_gaussian_weights, zen_score


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_authors_variant_is_what_their_code_gives(tinynet, images, arrays, published):
    noise = torch.from_numpy(arrays["X2"]).to(images.device)
    net = tinynet()
    assert zen_score(net, images, noise, variant="authors") == pytest.approx(published["zen_tinynet"], abs=1e-4)
    # nothing carries over from the first call, and the paper's formula is another
    assert zen_score(net, images, noise, variant="authors") == pytest.approx(published["zen_tinynet"], abs=1e-4)
    assert abs(zen_score(net, images, noise) - published["zen_tinynet"]) > 0.1


def test_the_authors_variance_is_the_running_one(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x, noise = images[:2, :, :4, :4], images[2:4, :, :4, :4]
    score = zen_score(net, x, noise, variant="authors")
    with torch.no_grad():
        change = net(x) - net(x + 0.01 * noise)
    expected = change.abs().sum(dim=(1, 2, 3)).mean().log() + net[1].running_var.mean().sqrt().log()
    assert score == pytest.approx(float(expected), abs=1e-5)


def test_the_paper_variant_is_algorithm_1(tinynet, images, arrays):
    noise = torch.from_numpy(arrays["X2"].copy()).to(images.device)
    net, layers = tinynet(), {}

    def keep_the_first(layer, args):
        layers.setdefault(layer, args[0])

    for layer in (net.bn1, net.bn2, net.bn3, net.bn4):
        layer.register_forward_pre_hook(keep_the_first)
    with torch.no_grad():
        change = net.features(images) - net.features(images + 0.01 * noise)  # train mode: statistics of the batch
    expected = math.log(change.flatten(1).norm(dim=1).mean())
    for values in layers.values():
        per_channel = values.transpose(0, 1).flatten(1).std(dim=1, correction=0)
        expected += math.log(per_channel.square().mean().sqrt())
    assert len(layers) == 4
    assert zen_score(net.eval(), images, noise) == pytest.approx(expected, abs=1e-4)


def test_weights_are_gaussian_whatever_they_were(images):
    def net():
        return nn.Sequential(nn.Conv2d(3, 64, 3, groups=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3))

    nets = [net(), net()]
    nn.init.zeros_(nets[1][1].weight)
    for one in nets:
        draw_gaussian_weights(one, generator(7))
    weight = nets[0][3].weight.detach()
    assert abs(float(weight.mean())) < 0.02
    assert float(weight.std()) == pytest.approx(1, abs=0.02)
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not nets[0][3].bias.any()


def test_constant_weights_stay(images):
    conv = nn.Conv2d(3, 3, 1, groups=3, bias=False)
    del conv.weight
    conv.register_buffer("weight", torch.zeros(3, 1, 1, 1))
    with pytest.raises(DegenerateNetworkError, match="dead"):
        zen.score(Probe(nn.Sequential(nn.Conv2d(3, 3, 1), conv), images))


def test_depends_on_the_seed_and_on_the_architecture_alone(tinynet, images):
    net, other = tinynet(), tinynet()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    score = zen.score(Probe(net, images, seed=1))
    assert zen.score(Probe(net, images, seed=1)) == score
    assert zen.score(Probe(other, images + 5, seed=1)) == score
    assert zen.score(Probe(net, images, seed=2)) != score


def test_repeats_average_single_draws(tinynet, images):
    net, draws = tinynet(), generator(3)
    images = Probe(net, images).images  # with channels last, on a CPU
    single = []
    for _ in range(3):
        draw_gaussian_weights(net, draws)
        single.append(zen_score(net, normal_like(images, draws), normal_like(images, draws)))
    assert zen.score(Probe(net, images, seed=3), repeats=3) == pytest.approx(sum(single) / 3)
    assert zen.score(Probe(net, images, seed=3)) == single[0]


def test_grows_with_depth(images):
    def score(depth):
        layers, channels = [], 3
        for _ in range(depth):
            layers += [nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
            channels = 8
        return zen.score(Probe(nn.Sequential(*layers), images))

    scores = [score(depth) for depth in (1, 2, 4, 8)]
    assert scores == sorted(scores)


class Zero(nn.Module):
    def forward(self, x):
        return 0 * x


@pytest.mark.parametrize(
    ("network", "n", "reason"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 1, "at least two images"),
        (lambda: nn.Sequential(Zero(), nn.Conv2d(3, 4, 3)), 4, "change of the features is 0.0"),
        (lambda: nn.Sequential(Zero(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 4, r"is 0\.0"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), 4, "no .* feature map"),
    ],
)
def test_what_cannot_be_scored_is_a_reason(images, network, n, reason):
    with pytest.raises(DegenerateNetworkError, match=reason):
        zen.score(Probe(network(), images[:n]))


def test_overflow_is_a_reason(images):
    net = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1) for i in range(40)))
    with pytest.raises(DegenerateNetworkError, match="overflows"):
        zen.score(Probe(net, images))
