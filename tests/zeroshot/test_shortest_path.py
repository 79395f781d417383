"""The shortest path through a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from hwnas.space import rows_of
from hwnas.spaces import make_space
from hwnas.zeroshot import compute_scores
from hwnas.zeroshot.shortest_path import fewest_layers


def score(net: nn.Module, images: Tensor) -> float | None:
    return compute_scores(["shortest_path"], net, images)["shortest_path"].value


class Around(nn.Module):
    """A part, and a way around it."""

    def __init__(self, part: nn.Module, way: nn.Module) -> None:
        super().__init__()
        self.part, self.way = part, way

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) + self.way(x)


class Gated(nn.Module):
    """Squeeze-and-excitation: the way past the gate is the short one."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True))).sigmoid()


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def conv() -> nn.Module:
    return nn.Conv2d(3, 3, 3, padding=1)


def head() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]


@pytest.mark.parametrize(
    ("body", "layers"),
    [
        ([], 0),
        ([conv(), nn.BatchNorm2d(3), nn.ReLU(inplace=True), conv()], 2),
        ([nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(2)], 2),
        ([Around(conv(), nn.Identity())], 0),
        ([Around(nn.Sequential(conv(), conv()), conv())], 1),
        ([Around(nn.Sequential(conv(), conv()), nn.Sequential(nn.AvgPool2d(1), conv(), conv()))], 2),
        ([Around(Around(nn.Sequential(conv(), conv(), conv()), conv()), nn.Sequential(conv(), conv())), conv()], 2),
        ([Around(conv(), Cut())], 1),
        ([Gated(), nn.Hardswish()], 0),
    ],
)
def test_layers_by_hand(body: list[nn.Module], layers: int) -> None:
    assert score(nn.Sequential(*body, *head()), torch.rand(2, 3, 4, 4)) == -(layers + 1)


def test_as_long_as_every_cell_says() -> None:
    """Of NAS-Bench-201: the shortest of four paths fifteen times, a stem, twice a shortcut of two, a classifier."""
    space = make_space("nasbench201", {})
    archs = rows_of(space.canonical(space.sample(12, np.random.default_rng(0))))
    found = []
    for arch in {*archs, (1,) * 6}:
        lengths = [
            sum(arch[edge] >= 2 for edge in path)
            for path in ((3,), (0, 4), (1, 5), (0, 2, 5))
            if all(arch[edge] for edge in path)
        ]
        if lengths:
            found.append(min(lengths))
            assert score(space.build(arch), torch.rand(2, 3, 32, 32)) == -(15 * found[-1] + 6)
    assert len(set(found)) > 1


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 6), ("resnet50", 7), ("mobilenet_v3_small", 18)])
def test_shortcuts_of_real_networks(name: str, layers: int) -> None:
    """ResNet: convolution, pooling, a shortcut where the map is halved or widened, classifier."""
    assert score(getattr(models, name)(weights=None), torch.rand(2, 3, 64, 64)) == -layers


def test_a_network_that_does_not_see_its_images_is_a_reason() -> None:
    result = compute_scores(["shortest_path"], nn.Sequential(conv(), Cut(), conv(), *head()), torch.rand(2, 3, 4, 4))
    assert result["shortest_path"].value is None
    assert "do not depend on the images" in (result["shortest_path"].reason or "")


def test_from_a_tensor_to_itself_there_is_no_layer() -> None:
    x, other = torch.rand(3, requires_grad=True), torch.rand(3, requires_grad=True)
    assert fewest_layers(2 * x, x) == 0
    assert fewest_layers(2 * x, other) is None
    assert fewest_layers(torch.rand(3), x) is None
