"""The scores of AZ-NAS, and the blocks that they are about."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn
from torchvision import models

from hwnas.zeroshot import DegenerateNetworkError, compute_scores, load_score
from hwnas.zeroshot.az_nas import BlockStatistics, blocks_of, entropy, keeps_norm, random_signs
from hwnas.zeroshot.forward import Observer
from hwnas.zeroshot.probe import Probe
from hwnas.zeroshot.stages import BlockFeatures

NAMES = ("expressivity", "progressivity", "trainability")


def score(name, net, images, seed=0):
    return load_score(name)(Probe(net, images, seed=seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def stages(net, images):
    """What TinyNet gives after each of its stages."""
    a = net.act1(net.bn1(net.conv1(images)))
    b = net.act2(net.bn2(net.conv2(a)) + a)
    c = net.act3(net.bn3(net.conv3(b)))
    return [a, b, c, net.act4(net.bn4(net.conv4(c)) + c)]


def test_as_published(tinynet, images, arrays, published):
    features = stages(tinynet(), images)
    signs = [torch.from_numpy(arrays[f"s{i}"]).to(images) * 2 - 1 for i in (2, 1, 0)]
    found = blocks_of(features, signs)
    assert sum(found.entropies) == pytest.approx(published["az_expressivity_tinynet"], abs=1e-4)
    increases = [after - before for before, after in zip(found.entropies, found.entropies[1:], strict=False)]
    assert min(increases) == pytest.approx(published["az_progressivity_tinynet"], abs=1e-4)
    mean = sum(found.trainabilities) / 3
    assert mean == pytest.approx(published["az_trainability_tinynet"], abs=1e-4)
    other_signs = blocks_of(features, [signs[0], signs[2], signs[1]])
    assert abs(sum(other_signs.trainabilities) / 3 - mean) > 1e-3


class Stage(nn.Module):
    def __init__(self, conv, bn, act, residual):
        super().__init__()
        self.conv, self.bn, self.act, self.residual = conv, bn, act, residual

    def forward(self, x):
        return self.act(self.bn(self.conv(x)) + (x if self.residual else 0))


def staged(net):
    """TinyNet as a sequence of its stages."""
    layers = [(net.conv1, net.bn1, net.act1), (net.conv2, net.bn2, net.act2), (net.conv3, net.bn3, net.act3)]
    body = [Stage(*three, residual=i == 1) for i, three in enumerate(layers)]
    body.append(Stage(net.conv4, net.bn4, net.act4, residual=True))
    return nn.Sequential(*body, net.gap, nn.Flatten(), net.fc)


def test_expressivity_and_progressivity_of_a_network_as_published(tinynet, images, published):
    net = staged(tinynet()).eval()
    net[0].bn.running_mean += 100  # the statistics are those of the batch
    assert score("expressivity", net, images) == pytest.approx(published["az_expressivity_tinynet"], abs=1e-4)
    assert score("progressivity", net, images) == pytest.approx(published["az_progressivity_tinynet"], abs=1e-4)
    # the published signs are one draw among many
    draws = [score("trainability", net, images, seed=seed) for seed in range(8)]
    assert sum(draws) / 8 == pytest.approx(published["az_trainability_tinynet"], abs=0.05)
    assert len(set(draws)) == 8


def test_one_forward_serves_all(tinynet, images):
    net, forwards = staged(tinynet()), []
    net.register_forward_pre_hook(lambda *_: forwards.append(1))
    compute_scores(NAMES, net, images)
    assert len(forwards) == 1


# entropy


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_entropy_of_uncorrelated_channels(channels):
    codes = torch.tensor([[1.0]])
    while len(codes) < 16:  # Hadamard's matrix, whose rows are orthogonal
        codes = torch.cat([torch.cat([codes, codes], 1), torch.cat([codes, -codes], 1)])
    features = codes[1 : channels + 1].view(channels, 4, 2, 2).transpose(0, 1)
    assert entropy(features) == pytest.approx(math.log(channels), abs=1e-6)
    assert entropy(1e-3 * features + torch.arange(channels).view(-1, 1, 1)) == pytest.approx(
        math.log(channels), abs=1e-4
    )


def test_entropy_of_unequal_and_of_dependent_channels():
    one, other = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    unequal = torch.stack([math.sqrt(3) * one, other]).view(1, 2, 2, 2)  # shares 3/4 and 1/4
    assert entropy(unequal) == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-6)
    assert entropy(torch.stack([one, -2 * one]).view(1, 2, 2, 2)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.5, math.inf, math.nan])
def test_constant_features_are_a_reason(value):
    with pytest.raises(DegenerateNetworkError, match="features of a block have the variance"):
        entropy(torch.full((2, 3, 4, 4), value))


# trainability


def test_keeps_norm():
    assert keeps_norm(1.0) == pytest.approx(0, abs=1e-5)
    assert keeps_norm(2.0) == pytest.approx(-0.5, abs=1e-5)
    assert keeps_norm(0.5) == pytest.approx(-0.5, abs=1e-5)
    assert keeps_norm(0.0) == pytest.approx(-1e6, rel=1e-5)  # a number, however bad


def test_signs_are_drawn_on_the_cpu_in_the_form_of_the_features(images):
    signs = random_signs(images, generator(3))
    assert signs.shape == images.shape
    assert signs.dtype == images.dtype
    assert signs.device == images.device
    assert set(signs.unique().tolist()) == {-1, 1}
    assert abs(float(signs.mean())) < 0.05
    assert torch.equal(signs, random_signs(images, generator(3)))


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_trainability_of_a_scaling_is_that_of_its_factor(scale):
    before = torch.randn(4, 1, 6, 6).requires_grad_()
    (found,) = blocks_of([before, scale * before], [random_signs(before, generator())]).trainabilities
    assert found == pytest.approx(keeps_norm(scale), abs=1e-4)  # v v' of one channel is 1, without noise


def test_trainability_sees_the_largest_singular_value():
    torch.manual_seed(0)
    before = torch.randn(64, 3, 16, 16).requires_grad_()
    conv = nn.Conv2d(3, 4, 1, bias=False)
    (found,) = blocks_of([before, conv(before)], [random_signs(torch.empty(64, 4, 16, 16), generator())]).trainabilities
    largest = float(torch.linalg.matrix_norm(conv.weight.detach()[..., 0, 0], 2))
    assert found == pytest.approx(keeps_norm(largest), abs=0.02)  # the mean of v v' is 1 within 1 / sqrt(16384)


@pytest.mark.parametrize(
    ("height", "width", "stride"),
    [(8, 8, 2), (7, 5, 2), (9, 8, 3), (5, 5, 3), (3, 3, 2), (1, 9, 2), (8, 6, (2, 1)), (6, 9, (1, 3))],
)
@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_strides_and_sizes_that_are_no_multiples(height, width, stride, weight):
    """A block that copies every stride-th pixel has the singular value of its weight, whatever is cut off."""
    before = torch.randn(3, 1, height, width).requires_grad_()
    conv = nn.Conv2d(1, 1, 1, stride, bias=False)
    nn.init.constant_(conv.weight, weight)
    after = conv(before)
    (found,) = blocks_of([before, after], [random_signs(after, generator())]).trainabilities
    assert found == pytest.approx(keeps_norm(weight), abs=1e-4)


def test_pixels_that_fall_on_one_are_channels():
    before = torch.randn(3, 1, 8, 8).requires_grad_()
    after = nn.functional.avg_pool2d(before, 2)  # a row of four times 1/4, whose norm is 1/2
    (found,) = blocks_of([before, after], [random_signs(after, generator())]).trainabilities
    assert found == pytest.approx(keeps_norm(0.5), abs=1e-4)


@pytest.mark.parametrize("scale", [math.inf, math.nan])
def test_gradients_that_overflow_are_a_reason(scale):
    class Overflows(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * scale

    before = torch.randn(2, 3, 4, 4).requires_grad_()
    with pytest.raises(DegenerateNetworkError, match="Jacobian of a block holds NaN"):
        blocks_of([before, Overflows.apply(before)], [random_signs(before, generator())])


def test_blocks_that_do_not_depend_on_each_other_are_a_reason():
    one, other = (torch.randn(2, 1, 4, 4).requires_grad_() for _ in range(2))
    with pytest.raises(DegenerateNetworkError, match="does not depend on the block before"):
        blocks_of([one, 2 * other], [random_signs(one, generator())])


# blocks


class Maps(Observer):
    def __init__(self, probe):
        self.features = BlockFeatures(probe.module)

    def saw_call(self, part, inputs, output):
        return self.features.saw_call(part, inputs, output)

    def finish(self, images, logits):
        return self.features.found()


def shapes(net, size=64):
    return [tuple(feature.shape[1:]) for feature in Probe(net, torch.rand(2, 3, size, size)).seen(Maps)]


def test_blocks_of_a_sequence():
    body = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU())]
    head = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 9, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(9, 2)]
    net, images = nn.Sequential(*body, *head), torch.rand(2, 3, 8, 8)
    first, second = Probe(net, images).seen(Maps)
    torch.testing.assert_close(first, net[:3](images))
    torch.testing.assert_close(second, net[:4](images))
    assert not any(part._forward_hooks for part in net.modules())


def test_a_classifier_of_linear_layers_is_none():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    assert shapes(net, 8) == [(4, 6, 6), (4, 4, 4)]


@pytest.mark.parametrize("size", [64, 32])  # of one pixel in the end
@pytest.mark.parametrize(
    ("name", "blocks", "first", "last"),
    [
        ("resnet18", 1 + 8, (64, 4), (512, 32)),
        ("mobilenet_v3_small", 1 + 11 + 1, (16, 2), (576, 32)),
        ("mobilenet_v2", 1 + 17 + 1, (32, 2), (1280, 32)),
        ("efficientnet_b0", 1 + 16 + 1, (32, 2), (1280, 32)),
        ("regnet_y_400mf", 1 + 16, (32, 2), (440, 32)),
        ("mnasnet0_5", 3 + 16 + 1, (16, 2), (1280, 32)),
    ],
)
def test_blocks_of_known_networks(name, blocks, first, last, size):
    found = shapes(getattr(models, name)(weights=None), size)
    assert len(found) == blocks
    for shape, (channels, stride) in zip((found[0], found[-1]), (first, last), strict=True):
        assert shape == (channels, size // stride, size // stride)


class Preactivated(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.act, self.conv = nn.ReLU(inplace=inplace), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(self.act(x))


def test_a_block_may_change_what_it_is_given(images):
    def net(inplace):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), *(Preactivated(inplace) for _ in range(3)))

    expected = Probe(net(False), images).seen(BlockStatistics)
    assert Probe(net(True), images).seen(BlockStatistics) == expected
    first = nn.Sequential(nn.ReLU(inplace=True), net(False))  # of the images themselves
    before = images.clone()
    assert Probe(first, images).seen(BlockStatistics) != expected
    assert torch.equal(images, before)


def dead(net):
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def poisoned(net):
    nn.init.constant_(net[2].conv.weight, math.nan)
    return net


@pytest.mark.parametrize(
    ("network", "batch", "reason"),
    [
        (dead, lambda x: x, r"variance 0\.0"),
        (poisoned, lambda x: x, "variance nan"),
        (lambda net: net[:1], lambda x: x, "has 1 blocks"),
        (lambda net: nn.Flatten(), lambda x: x, "has 0 blocks"),
        (lambda net: net, lambda x: x[:1, :, :1, :1], "single value"),
        (lambda net: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), lambda x: x[:1, :, :1, :1], "variance"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_scored_is_a_reason(tinynet, images, name, network, batch, reason):
    with pytest.raises(DegenerateNetworkError, match=reason):
        score(name, network(staged(tinynet(partial(nn.ReLU, inplace=True)))), batch(images))


def test_one_image_of_several_pixels_is_enough(tinynet, images):
    assert all(math.isfinite(score(name, staged(tinynet()), images[:1])) for name in NAMES)
