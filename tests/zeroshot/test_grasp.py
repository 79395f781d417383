"""GraSP by one scale of the weights against GraSP from its definition, and what it needs to be differentiated twice."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from hwnas.zeroshot import load_score
from hwnas.zeroshot.probe import Probe
from hwnas.zeroshot.twice import Normalisation


def by_definition(net, images, labels):
    """Both differentiations as PyTorch has them."""
    weights = list(dict.fromkeys(part.weight for part in net.modules() if isinstance(part, nn.Conv2d | nn.Linear)))
    loss = F.cross_entropy(net(images.clone()), labels)
    slopes = torch.autograd.grad(loss, weights, create_graph=True)
    products = torch.autograd.grad(sum(slope.square().sum() for slope in slopes) / 2, weights, materialize_grads=True)
    return -float(sum((weight.detach() * product).sum() for weight, product in zip(weights, products, strict=True)))


class Twice(nn.Module):
    """Calls a module twice."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(F.silu(self.part(x)))


class Otherwise(nn.Module):
    """Uses the weight of its convolution as one, without calling it, and as a number."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = F.silu(self.conv(x))
        x = functional_call(nn.Conv2d(4, 4, 3, stride=2, bias=False), {"weight": self.conv.weight}, (x,))
        x = F.conv2d(input=x, weight=self.conv.weight, padding=1)
        return x * self.conv.weight.square().mean()


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.squeeze = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))


def tied():
    parts = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 3, dilation=2, bias=False)]
    parts[3].weight = parts[0].weight
    return nn.Sequential(*parts)


Conv = partial(nn.Conv2d, 4, 4, 3)
BODIES = {
    "plain": lambda: nn.Sequential(Conv(bias=False), nn.BatchNorm2d(4), nn.Tanh(), Conv(stride=2)),
    "normalised": lambda: nn.Sequential(Conv(), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4), nn.SiLU()),
    "grouped": lambda: nn.Sequential(Conv(groups=2), nn.SiLU(), Conv(groups=4, padding=1), nn.BatchNorm2d(4)),
    "padded": lambda: nn.Sequential(Conv(padding="same"), nn.SiLU(), Conv(padding=1, padding_mode="circular")),
    "in place": lambda: nn.Sequential(nn.SiLU(inplace=True), Conv(), nn.LeakyReLU(inplace=True), Conv()),
    "statistics of its own": lambda: nn.Sequential(Conv(), nn.InstanceNorm2d(4), nn.SiLU(), nn.GroupNorm(2, 4), Conv()),
    "shared": lambda: nn.Sequential(Twice(nn.Sequential(Conv(padding=1), nn.BatchNorm2d(4)))),
    "tied": tied,
    "otherwise": Otherwise,
    "gate": lambda: nn.Sequential(Conv(groups=4), nn.BatchNorm2d(4), Gate()),
}


@pytest.mark.parametrize("body", BODIES)
def test_as_by_definition(body):
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.Linear(6, 3)]
    net = nn.Sequential(nn.Conv2d(2, 4, 1), BODIES[body](), *head).double()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d) and part.affine:
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -1, 1)
    images, labels = torch.randn(5, 2, 9, 8, dtype=torch.double), torch.arange(5) % 3
    expected = by_definition(net, images, labels)
    assert load_score("grasp")(Probe(net, images, labels)) == pytest.approx(expected, rel=1e-9)
    nn.init.ones_(net[-1].weight)  # equal logits of all classes
    assert load_score("grasp")(Probe(net, images, labels)) != pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 3), (2, 3, 5)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_normalisation_is_that_of_pytorch(shape, affine, last):
    torch.manual_seed(0)
    inputs = (3 + 2 * torch.randn(shape, dtype=torch.double)).requires_grad_()
    if last and inputs.dim() == 4:
        inputs = inputs.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.rand(2, 3, dtype=torch.double) + 0.5 if affine else (None, None)

    def normalise(values):
        return Normalisation.apply(values, weight, bias, 1e-3)

    torch.testing.assert_close(normalise(inputs), F.batch_norm(inputs, None, None, weight, bias, True, 0.1, 1e-3))
    assert torch.autograd.gradcheck(normalise, inputs)
    assert torch.autograd.gradgradcheck(normalise, inputs)
