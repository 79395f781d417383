"""The scores that count patterns of activations, or look at the spectrum of a matrix."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torchvision import models

from hwnas.zeroshot import DegenerateNetworkError, compute_scores, load_score, vkdnw
from hwnas.zeroshot.codes import ActivationCodes
from hwnas.zeroshot.meco import least_eigenvalue
from hwnas.zeroshot.near import activation_matrix, effective_rank
from hwnas.zeroshot.ntk import condition_number, tangent_kernel
from hwnas.zeroshot.probe import Probe
from hwnas.zeroshot.vkdnw import decile_entropy, fisher_information

NAMES = ("swap", "linear_regions", "ntk", "vkdnw", "near", "meco")


def score(name, net, images, seed=0):
    return load_score(name)(Probe(net, images, seed=seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_net():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.PReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("inplace", [False, True])
def test_as_published(tinynet, images, published, memory_format, inplace):
    net = tinynet(partial(nn.ReLU, inplace=inplace)).to(memory_format=memory_format)
    images = images.contiguous(memory_format=memory_format)
    assert score("swap", net, images) == published["swap_tinynet"]
    assert score("linear_regions", net, images) == published["linear_regions_tinynet"]
    assert score("ntk", net, images) == pytest.approx(-published["ntk_tinynet"], rel=1e-2)


def test_linear_regions_of_equal_images_as_published(tinynet, images, published):
    images[[3, 7]] = images[1].clone()
    assert score("linear_regions", tinynet(), images) == published["linear_regions_rows_1_3_7_equal"]


@pytest.mark.parametrize("inplace", [False, True])
def test_meco_as_published(tinynet, arrays, published, accelerator, inplace):
    image = torch.from_numpy(arrays["images"].copy()).to(accelerator)
    net = tinynet(partial(nn.ReLU, inplace=inplace))
    assert score("meco", net, image) == pytest.approx(published["meco_tinynet"], abs=1e-3)
    # the authors would count once more what a container gives, which is what its ReLU gives
    layers = (net.conv1, net.bn1, net.act1)
    once = score("meco", nn.Sequential(*layers), image)
    assert score("meco", nn.Sequential(nn.Identity(), nn.Sequential(*layers)), image) == once > 0.1


@pytest.mark.parametrize("n", [2, 24, 25, 50])
def test_patterns_and_regions_are_counted_one_by_one(n):
    torch.manual_seed(n)
    net, images = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), torch.randn(n, 1, 5, 5)
    images[-1] = images[0]  # the words of both halves of 50 images matter
    images[:, :, 0] = images[:, :, 1]  # and some units are active for the same images
    active = (net[0](images) > 0).flatten(1)
    patterns = {tuple(column) for column in active.T.tolist()}
    regions = {tuple(row) for row in active.tolist()}
    assert 10 < len(patterns) <= 40 or n == 2
    assert score("swap", net, images) == len(patterns)
    assert score("linear_regions", net, images) == len(regions) < n


def test_patterns_that_differ_in_one_word_only():
    class Signs(nn.Module):
        def forward(self, x):
            return torch.relu(x)

    images = -torch.ones(60, 1, 1, 4)
    images[0, ..., 1] = images[30, ..., 2] = images[59, ..., 3] = 1
    assert score("swap", Signs(), images) == 4
    codes = Probe(Signs(), images).seen(ActivationCodes)
    assert codes.words.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1 << 6, 0], [0, 0, 1 << 11]]
    images[59, ..., 3] = -1
    assert score("swap", Signs(), images) == 3


# MeCo


@pytest.mark.parametrize("r", [0.0, 0.5, -0.8, 1.0])
def test_least_eigenvalue_of_two_channels(r):
    a, b = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    channels = torch.stack([a, r * a + math.sqrt(1 - r * r) * b])  # of the correlation r
    scaled = channels * torch.tensor([[3.0], [-0.1]]) + torch.tensor([[5.0], [1.0]])
    assert least_eigenvalue(channels) == pytest.approx(1 - abs(r), abs=1e-6)
    assert least_eigenvalue(scaled) == pytest.approx(1 - abs(r), abs=1e-6)


def test_least_eigenvalue_is_that_of_numpy():
    channels = torch.randn(5, 30, generator=generator(), device="cpu")
    expected = np.linalg.eigvalsh(np.corrcoef(channels.numpy()))[0]
    assert least_eigenvalue(channels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "channels",
    [
        torch.randn(4, 4, generator=generator(1), device="cpu"),  # not more pixels than channels
        torch.randn(7, 1, generator=generator(2), device="cpu"),
        torch.stack([torch.arange(9.0), torch.zeros(9)]),
        torch.stack([torch.arange(9.0).double(), torch.full((9,), 0.1).double()]),
        torch.stack([torch.arange(9).double(), torch.full((9,), 0.1, dtype=torch.float64)]),  # whose mean is not 0.1
    ],
)
def test_constant_or_too_many_channels_count_nothing_at_all(channels):
    assert least_eigenvalue(channels) == 0


def test_channels_that_depend_on_each_other_count_nothing():
    channels = torch.randn(3, 9, generator=generator(3), device="cpu")
    channels[2] = channels[0] - 2 * channels[1] + 3
    assert least_eigenvalue(channels) == pytest.approx(0, abs=1e-7)


def test_channels_of_linear_layers_come_last():
    class Tokens(nn.Module):
        def __init__(self, *layers):
            super().__init__()
            self.layers = nn.Sequential(*layers)

        def forward(self, x):
            return self.layers(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 6)
    linear, conv = nn.Linear(3, 4), nn.Conv2d(3, 4, 1)
    conv.load_state_dict({"weight": linear.weight[..., None, None], "bias": linear.bias})
    meco = least_eigenvalue(conv(images)[0].flatten(1).detach())
    # its own output, channels first, is another tensor
    assert score("meco", Tokens(linear), images) == pytest.approx(2 * meco, rel=1e-5)
    by_conv = score("near", nn.Sequential(conv, nn.GELU()), images)
    assert score("near", Tokens(linear, nn.GELU()), images) == pytest.approx(by_conv, rel=1e-5)
    assert score("near", Tokens(linear, nn.GELU(), nn.LayerNorm(4)), images) > by_conv + 1


# NEAR


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (torch.eye(5), 5),
        (-3 * torch.eye(5)[:3], 3),
        (torch.outer(torch.arange(4.0), torch.arange(1.0, 4)), 1),
        (torch.zeros(4, 6), 0),
        (torch.diag(torch.tensor([3.0, 1])), 4 / 3**0.75),  # shares 3/4 and 1/4
    ],
)
def test_effective_rank_by_hand(matrix, rank):
    # singular values are roots: what rounding adds to an eigenvalue of 0 is some 1e-8
    assert effective_rank(matrix) == pytest.approx(rank, abs=1e-5)
    assert effective_rank(matrix.T) == pytest.approx(rank, abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 5, 4, 4), (5, 5)),
        ((2, 64, 4, 4), (32, 64)),  # fewer pixels than channels: all
        ((3, 5, 1, 1), (3, 5)),
        ((9, 5, 1, 1), (5, 5)),
        ((9, 5), (5, 5)),
        ((3, 5), (3, 5)),
        ((2, 4, 5), (5, 5)),  # tokens
        ((1, 1, 7, 3), (1, 1)),
    ],
)
def test_shape_of_the_activation_matrix(shape, expected):
    output = torch.rand(shape, generator=generator(), device="cpu")
    assert activation_matrix(output, generator()).shape == expected


def test_rows_are_pixels_column_by_column_from_the_start_of_one():
    n, channels, height, width = 3, 4, 3, 2
    output = torch.arange(n * channels * height * width).view(n, channels, height, width)
    in_order = [output[i, :, y, x].tolist() for i in range(n) for x in range(width) for y in range(height)]
    starts = set()
    for seed in range(60):
        rows = activation_matrix(output, generator(seed)).tolist()
        start = in_order.index(rows[0])
        assert rows == in_order[start : start + channels]
        starts.add(start)
    assert starts == {0, 3, 6, 9, 12}  # 15 would leave 3 rows
    memory = output.contiguous(memory_format=torch.channels_last)
    assert activation_matrix(memory, generator(5)).tolist() == activation_matrix(output, generator(5)).tolist()


def test_near_adds_layers_and_activations():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Sigmoid())
    nn.init.eye_(net[1].weight)
    images = torch.tensor([[1.0, 0], [0, -1]]).view(2, 1, 1, 2)
    assert score("near", net, images) == pytest.approx(2 + 1, abs=1e-5)  # ReLU leaves one dimension


def test_prelu_counts_once():
    torch.manual_seed(0)
    images = torch.randn(8, 3, 4, 4)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    assert score("near", nn.Sequential(layer, nn.PReLU(init=0.1)), images) == pytest.approx(
        score("near", nn.Sequential(layer, nn.LeakyReLU(0.1)), images), rel=1e-9
    )


# NTK


def test_tangent_kernel_of_a_linear_network_is_that_of_its_inputs():
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(4, 3, 2, 2)
    inputs = images.flatten(1).double()
    expected = 3 * inputs @ inputs.T  # the gradient of the sum of three logits is three times the input
    torch.testing.assert_close(tangent_kernel(net, images), expected, rtol=1e-5, atol=1e-5)


def test_ntk_by_hand():
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(2, 1)), torch.tensor([[3.0, 0], [0, 1]]).view(2, 1, 1, 2)
    assert score("ntk", net, images) == pytest.approx(-9, rel=1e-6)
    with pytest.raises(DegenerateNetworkError, match=r"singular, its eigenvalues are from .* to 18"):
        score("ntk", net, images[[0, 0]])
    with pytest.raises(DegenerateNetworkError, match="NaN"):
        condition_number(torch.tensor([[1.0, math.nan], [math.nan, 1]]))


def test_biases_are_no_weights_and_frozen_weights_are():
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(3, 3, 2, 2)
    weights = [torch.autograd.grad(net(image[None]).sum(), [net[1].weight, net[3].weight]) for image in images]
    rows = torch.stack([torch.cat([gradient.flatten() for gradient in image]) for image in weights])
    torch.testing.assert_close(tangent_kernel(net, images), (rows @ rows.T).double(), rtol=1e-5, atol=1e-5)
    kernel = tangent_kernel(net, images)
    assert torch.equal(tangent_kernel(net.requires_grad_(False), images), kernel)


# VKDNW


def test_decile_entropy_by_hand():
    assert decile_entropy(torch.eye(11)) == pytest.approx(math.log(9))
    assert decile_entropy(7 * torch.eye(3)) == pytest.approx(math.log(9))
    shares = torch.arange(1.0, 10)  # 0, 1, ..., 10: the deciles are 1 to 9
    expected = -sum(float(k) / 45 * math.log(float(k) / 45) for k in shares)
    assert decile_entropy(torch.diag(torch.arange(11.0))) == pytest.approx(expected)
    alone = torch.zeros(11)
    alone[3] = 1  # only the largest: no decile but the last sees it
    with pytest.raises(DegenerateNetworkError, match="zero"):
        decile_entropy(torch.diag(alone))
    with pytest.raises(DegenerateNetworkError, match="NaN"):
        decile_entropy(torch.full((2, 2), math.nan))


def slow_information(net, images):
    """By one backward pass for every image and class, from the definition."""
    net.eval()
    total = 0.0
    for image in images:
        logits = net(image[None])[0]
        chances = logits.softmax(0).detach() * 0.95 + 0.05 / len(logits)
        for log_p, chance in zip(logits.log_softmax(0), chances, strict=True):
            gradients = torch.autograd.grad(log_p, list(net.parameters()), retain_graph=True, materialize_grads=True)
            row = torch.stack([gradient.flatten()[0] for gradient in gradients]).double()
            total = total + chance * torch.outer(row, row)
    return total / len(images)


class Scaled(nn.Module):
    """A module with a parameter of its own beside its layer, some of it in place."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.conv, self.gamma = inplace, nn.Conv2d(3, 3, 1), nn.Parameter(torch.full((3, 1, 1), 0.5))

    def forward(self, x):
        x = self.conv(x)
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


class LayerScale(Scaled):
    def forward(self, x):
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


def mixed(inplace):
    torch.manual_seed(1)
    act = partial(nn.ReLU, inplace=inplace)
    body = [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), act(), Scaled(inplace), nn.GroupNorm(1, 3)]
    hidden = [nn.Hardswish(inplace=inplace), nn.Conv2d(3, 3, 3), LayerScale(inplace), act()]
    return nn.Sequential(*body, *hidden, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4), nn.PReLU())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("network", [lambda _: small_net(), mixed])
def test_fisher_information_is_that_of_every_image_and_class(network, inplace):
    net, images = network(inplace), torch.randn(5, 3, 8, 8, generator=generator(), device="cpu")
    images = images.to(next(net.parameters()).device)
    information = fisher_information(net, images, generator())
    expected = slow_information(net, images)
    torch.testing.assert_close(information, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0.01


def test_mixtures_of_many_classes_estimate_the_information(monkeypatch):
    net, images = small_net(), torch.randn(64, 3, 8, 8)
    exact = fisher_information(net, images, generator())
    monkeypatch.setattr(vkdnw, "_MOST_DIRECTIONS", 2)
    estimates = [fisher_information(net, images, generator(seed)) for seed in range(40)]
    assert not torch.equal(estimates[0], estimates[1])
    mean = torch.stack(estimates).mean(0)
    assert float((mean - exact).norm() / exact.norm()) < 0.1
    assert float((estimates[0] - 2 * exact).norm() / exact.norm()) > 0.5


def test_vkdnw_counts_parameters_and_draws_its_weights(images):
    net = small_net()
    value = score("vkdnw", net, images)
    count = len(list(net.parameters()))
    assert count < value < count + math.log(9)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert score("vkdnw", net, images + 7) != value  # PReLU's slope is not drawn
    nn.init.constant_(net[4].weight, 0.25)
    assert score("vkdnw", net, images + 7) == value
    assert score("vkdnw", net, images, seed=1) != value


class Borrowed(nn.Module):
    """Uses the weight of a layer without calling the layer."""

    def __init__(self, used):
        super().__init__()
        self.used, self.first, self.fc = used, nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x).mean((2, 3))
        return functional_call(nn.Linear(4, 4, bias=False), {"weight": self.fc.weight}, (x,)) if self.used else x


class Squashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.offset = nn.Conv2d(3, 4, 3), nn.Parameter(torch.zeros(4, 1, 1))

    def forward(self, x):
        return torch.tanh(self.conv(x) + self.offset).mean((2, 3))


def test_weights_that_act_otherwise_are_a_reason(images):
    with pytest.raises(DegenerateNetworkError, match=r"fc\.weight does not act through"):
        score("vkdnw", Borrowed(True), images)
    assert math.isfinite(score("vkdnw", Borrowed(False), images))  # weights without influence are no error
    with pytest.raises(DegenerateNetworkError, match="Squashed gives is no affine function of its offset"):
        score("vkdnw", Squashed(), images)
    attention = nn.TransformerEncoderLayer(256, 2, 32, batch_first=True)
    with pytest.raises(DegenerateNetworkError, match="MultiheadAttention gives a tuple"):
        score("vkdnw", nn.Sequential(nn.Flatten(2), attention, nn.Flatten(), nn.Linear(768, 4)), images)
    swin = models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=4)
    with pytest.raises(DegenerateNetworkError, match="no affine function of its relative_position_bias_table"):
        score("vkdnw", swin, torch.randn(2, 3, 32, 32))


# All of them


def dead(net):
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def poisoned(net):
    nn.init.constant_(net.conv3.weight, math.nan)
    return net


@pytest.mark.parametrize(
    ("network", "n", "names", "reason"),
    [
        (lambda net: net, 1, ("swap", "linear_regions", "ntk"), "at least two"),
        (poisoned, 16, ("swap", "linear_regions", "ntk", "near", "meco"), "NaN"),
        (dead, 16, ("ntk",), "singular"),
        (lambda net: net.conv1, 16, ("swap", "linear_regions"), "Conv2d has no activations"),
        (lambda net: nn.Flatten(), 16, ("near",), "Flatten has neither layers"),
        (lambda net: nn.Flatten(), 16, ("meco",), "Flatten makes no"),
        (lambda net: net.act1, 16, ("ntk",), "ReLU has no weights"),
        (lambda net: net.act1, 16, ("vkdnw",), "ReLU has no parameters"),
    ],
)
def test_what_cannot_be_scored_is_a_reason(tinynet, images, network, n, names, reason):
    for name in names:
        with pytest.raises(DegenerateNetworkError, match=reason):
            score(name, network(tinynet()), images[:n])


def test_what_does_not_see_the_images_is_a_reason():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.weight.expand(len(x), 3).detach()

    for name, reason in (("ntk", "not depend on the weights"), ("vkdnw", "not depend on the images")):
        with pytest.raises(DegenerateNetworkError, match=reason):
            score(name, Constant(), torch.ones(2, 1, 2, 2))


def test_a_dead_network_scores_least(tinynet, images):
    net = dead(tinynet())
    assert score("swap", net, images) == score("linear_regions", net, images) == 1
    assert score("near", net, images) == score("meco", net, images) == 0


def test_one_pass_serves_all_counts_of_patterns(tinynet, images):
    net, forwards = tinynet(), []
    net.register_forward_pre_hook(lambda *_: forwards.append(1))
    compute_scores(["naswot", "swap", "linear_regions"], net, images)
    assert len(forwards) == 1


def test_one_image_of_several_pixels_is_enough(tinynet, images):
    values = [score(name, tinynet(), images[:1]) for name in ("near", "meco")]
    assert all(value > 1 for value in values)
    with pytest.raises(DegenerateNetworkError, match="single value"):
        score("meco", tinynet(), images[:1, :, :1, :1])
