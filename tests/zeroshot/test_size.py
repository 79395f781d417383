from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from hwnas.zeroshot.probe import Probe
from hwnas.zeroshot.size import macs, params


def test_counts_by_hand():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
    images = torch.rand(7, 4, 4, 4)
    conv, linear = 2 * 3 * 3 * 8, 32 * 5
    assert params(Probe(net, images)) == (conv + 8) + (8 + 8) + (linear + 5)
    assert macs(Probe(net, images)) == 2 * 2 * conv + linear


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "regnet_y_400mf", "resnet18"])
def test_macs_are_what_torch_counts(name):
    net = getattr(models, name)(weights=None).eval()
    image = torch.rand(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    assert macs(Probe(net, image)) == counter.get_total_flops() / 2


def test_published_size_of_mobilenet_v3_small():
    net, image = models.mobilenet_v3_small(weights=None), torch.rand(1, 3, 224, 224)
    assert params(Probe(net, image)) == 2542856  # torchvision's page of the model
    assert macs(Probe(net, image)) == pytest.approx(0.06e9, rel=0.1)  # "0.06 GFLOPS" there
