from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.zeroshot import DegenerateNetworkError, codes, naswot
from hwnas.zeroshot.codes import ActivationCodes, add_agreements
from hwnas.zeroshot.naswot import log_determinant
from hwnas.zeroshot.probe import Probe

MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Tanh),
)


def kernel(module, images):
    return Probe(module, images).seen(ActivationCodes).kernel


def naswot_score(module, images):
    return naswot.score(Probe(module, images))


def unpacked_codes(arrays):
    return [
        torch.tensor(np.unpackbits(arrays[f"code{i}"], axis=1)[:, : int(arrays[f"dim{i}"])].astype(bool))
        for i in range(3)
    ]


@pytest.mark.parametrize("chunk_bits", [2**22, 100, 1])
def test_kernel_and_determinant_of_published_codes(arrays, published, monkeypatch, chunk_bits):
    monkeypatch.setattr(codes, "_CHUNK_BITS", chunk_bits)
    agreements = torch.zeros(16, 16, dtype=torch.float64)
    for code in unpacked_codes(arrays):
        add_agreements(agreements, code)
    np.testing.assert_array_equal(agreements.cpu().numpy(), arrays["K"])
    assert log_determinant(agreements) == pytest.approx(published["naswot_codes_logdet"], rel=1e-9)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_tinynet_scores_as_published(tinynet, images, arrays, published, inplace, memory_format):
    net = tinynet(partial(nn.ReLU, inplace=inplace)).to(memory_format=memory_format)
    images = images.contiguous(memory_format=memory_format)
    np.testing.assert_array_equal(kernel(net, images).cpu().numpy(), arrays["tinynet_K"])
    assert naswot_score(net, images) == pytest.approx(published["naswot_tinynet"], rel=1e-9)


@pytest.mark.parametrize("activation", MODULES)
def test_every_activation_module_is_scored(tinynet, images, activation):
    assert np.isfinite(naswot_score(tinynet(activation), images))


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.Hardswish, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Tanh])
def test_a_unit_is_active_where_its_output_is_positive(images, activation):
    # the maximum with 0 makes many inputs of the second activation exactly 0, which is not active
    net = nn.Sequential(nn.Conv2d(3, 4, 3), activation(), nn.ReLU(), activation())
    positive = (net(images) > 0).flatten(1).double()
    expected = 3 * (positive @ positive.T + (1 - positive) @ (1 - positive).T)
    torch.testing.assert_close(kernel(net, images), expected, rtol=0, atol=0)


def test_one_module_used_twice_counts_twice(images):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

        def forward(self, x):
            return self.act(self.conv(self.act(self.conv(x))))

    assert kernel(Shared(), images).diagonal().tolist() == [2 * 3 * 16 * 16] * 16


@pytest.mark.parametrize("function", [F.relu, F.relu_, torch.relu, Tensor.relu_, F.silu, F.gelu, F.hardswish, F.relu6])
def test_an_activation_may_be_a_function(images, function):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return function(self.conv(x))

    net = Functional()
    same = nn.Sequential(net.conv, nn.ReLU())
    torch.testing.assert_close(kernel(net, images), kernel(same, images), rtol=0, atol=0)


def test_gates_are_not_units(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Sigmoid(), nn.Hardsigmoid())
    assert float(kernel(net, images)[0, 0]) == 4 * 16 * 16


def test_dropout_is_off_and_the_statistics_are_of_the_batch(tinynet, images):
    net = tinynet()
    with_dropout = nn.Sequential(nn.Dropout(0.5), net)
    assert naswot_score(with_dropout, images) == naswot_score(net, images)
    net.bn1.running_mean += 100  # in evaluation mode nothing would pass the first ReLU
    assert naswot_score(net.eval(), images) == naswot_score(tinynet(), images)


def dead(net):
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def poisoned(net):
    nn.init.constant_(net.conv3.weight, float("nan"))
    return net


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return x


class Folded(nn.Module):
    """Puts the columns of pixels into the batch axis before its activation."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(x.flatten(0, 1))


@pytest.mark.parametrize(
    ("network", "batch", "reason"),
    [
        (lambda net: net, lambda x: x[torch.tensor([0, 1, 2, 1])], "images 1 and 3 have the same code"),
        (lambda net: net, lambda x: x[:1], "at least two"),
        (dead, lambda x: x, "images 0 and 1 have the same code"),
        (poisoned, lambda x: x, "NaN"),
        (lambda net: net.conv1, lambda x: x, "no activations"),
        (lambda net: Unused(), lambda x: x, "no activations"),
        (lambda net: Folded(), lambda x: x, "no batch of 16 images"),
    ],
)
def test_what_cannot_be_scored_is_a_reason(tinynet, images, network, batch, reason):
    with pytest.raises(DegenerateNetworkError, match=reason):
        naswot_score(network(tinynet()), batch(images))


def test_a_kernel_singular_without_equal_rows_is_a_reason():
    # four codes of two bits: the complement of every code is there, so the rows depend on each other
    agreements = torch.zeros(4, 4, dtype=torch.float64)
    add_agreements(agreements, torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).bool())
    with pytest.raises(DegenerateNetworkError, match=r"singular, its rank is 3|singular, its rank is 2"):
        log_determinant(agreements)


def test_grows_with_depth_and_width(images):
    def score(depth, width):
        torch.manual_seed(depth * 100 + width)
        layers, channels = [], 3
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        return naswot_score(nn.Sequential(*layers), images)

    by_depth = [score(depth, 8) for depth in (1, 2, 4, 8)]
    by_width = [score(3, width) for width in (2, 4, 8, 16)]
    assert by_depth == sorted(by_depth)
    assert by_width == sorted(by_width)
