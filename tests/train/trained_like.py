"""Networks as after training, without training: weights, statistics and affine parameters that all do something."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwnas.space import Arch, SearchSpace
from hwnas.spaces.morph_blocks import ConvexSkip
from hwnas.testing.networks import randomise


def smooth_images(space: SearchSpace, arch: Arch, batch: int, seed: int) -> Tensor:
    """(batch, *input) images whose neighbouring pixels are alike."""
    channels, size, _ = space.input_shape(arch)
    coarse = torch.randn(batch, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def trained_like(space: SearchSpace, arch: Arch, seed: int) -> nn.Module:
    """In evaluation; the logits vary over images by about 1."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = space.build(arch)
        randomise(net)
        for part in net.modules():
            if isinstance(part, ConvexSkip):
                part.mix.uniform_(-0.2, 1.2)
            if isinstance(part, nn.BatchNorm2d):
                part.bias.normal_(0, 0.4)
        settle(net, space, arch, seed)
        spread = net(smooth_images(space, arch, 32, seed)).std(0).mean()
        classifier = [part for part in net.modules() if isinstance(part, nn.Linear)][-1]
        classifier.weight /= spread
        return net


def settle(net: nn.Module, space: SearchSpace, arch: Arch, seed: int) -> None:
    """Statistics of batch normalisation as images give them; then evaluation."""
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 0.4
        for part in range(8):
            net.train()(smooth_images(space, arch, 16, 1000 * seed + part))
        for norm in norms:
            norm.momentum = 0.1
    net.eval()


def difference(one: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Largest difference of two networks' logits in evaluation."""
    with torch.no_grad():
        return float((one.eval()(images) - other.eval()(images)).abs().max())


def correlation(one: nn.Module, other: nn.Module, images: Tensor) -> float:
    """How alike the logits of two networks vary over images, from -1 to 1."""
    with torch.no_grad():
        a, b = (net.eval()(images) for net in (one, other))
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a * b).sum() / (a.norm() * b.norm() + 1e-12))
