from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.features import pooled_features


@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [
        ("resnet18", 512, 32),
        ("mobilenet_v2", 1280, 32),  # pools by a function
        ("mobilenet_v3_small", 576, 32),  # squeeze-and-excitation by AdaptiveAvgPool2d in its blocks
        ("efficientnet_b0", 1280, 32),
        ("regnet_y_400mf", 440, 32),
        ("mnasnet0_5", 1280, 32),  # pools by torch.mean
        ("shufflenet_v2_x0_5", 1024, 32),
        ("squeezenet1_0", 1000, 21),
        ("vgg11", 512, 32),  # pools to 7 x 7, inside of nothing
    ],
)
@pytest.mark.parametrize("size", [64, 32])  # of one pixel in the end
def test_finds_what_is_pooled(name, channels, stride, size):
    net = getattr(models, name)(weights=None).eval()
    with torch.inference_mode():
        features = pooled_features(net, torch.rand(2, 3, size, size))
    assert features.shape == (2, channels, size // stride, size // stride)


def test_pooling_modules_between_stages_are_not_global():
    features = pooled_features(models.densenet121(weights=None).eval(), torch.rand(2, 3, 64, 64))
    assert features.shape == (2, 1024, 2, 2)


def test_the_map_after_the_addition_of_a_residual_block():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x + self.conv(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.fc = Block(), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.block(x).mean((2, 3)))

    net, images = Net(), torch.rand(2, 3, 8, 8)
    assert torch.equal(pooled_features(net, images), net.block(images))


def test_convolutions_after_pooling_are_a_classifier():
    body = nn.Conv2d(3, 4, 3)
    net = nn.Sequential(
        body, nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 9, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(9, 2)
    )
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(pooled_features(net, images), body(images))


def test_convolutions_after_pooling_by_a_function_are_a_classifier():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.act = nn.Conv2d(4, 9, 1), nn.Hardswish()

        def forward(self, x):
            return self.act(self.hidden(x.mean((2, 3), keepdim=True)))

    body = nn.Conv2d(3, 4, 3)
    net, images = nn.Sequential(body, Head(), nn.Flatten()), torch.rand(2, 3, 8, 8)
    assert torch.equal(pooled_features(net, images), body(images))


def test_pooling_to_several_pixels_at_the_end_of_a_container():
    body = nn.Conv2d(3, 4, 3)
    net = nn.Sequential(nn.Sequential(body, nn.AdaptiveAvgPool2d(2)), nn.Flatten(), nn.Linear(16, 2))
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(pooled_features(net, images), body(images))


def test_a_map_of_one_pixel_without_pooling_modules():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    assert pooled_features(net, torch.rand(2, 3, 1, 1)).shape == (2, 4, 1, 1)


def test_hooks_go_and_no_map_is_a_reason():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(DegenerateNetworkError, match="Sequential makes no"):
        pooled_features(net, torch.rand(2, 3, 2, 2))
    assert not any(part._forward_hooks for part in net.modules())
