"""Statistics are those of the images that they were measured on."""

from __future__ import annotations

import torch
from torch import nn

from hwnas.supernet.recalibrate import recalibrate


def test_statistics_are_the_means_over_the_batches() -> None:
    batches = [torch.randn(50, 2, 3, 3) * scale + scale for scale in (1.0, 3.0)]
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5))
    with torch.no_grad():
        network[0].running_mean.fill_(100)  # what an earlier subnet left
    assert recalibrate(network, batches) is network
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    variances = torch.stack([batch.var(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(network[0].running_mean, means)
    torch.testing.assert_close(network[0].running_var, variances)
    assert not network[0].training
    assert not network[1].training
    assert network[0].momentum == 0.1


def test_weights_stay_as_they_are_and_get_no_gradients() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    before = {name: value.clone() for name, value in network.named_parameters()}
    recalibrate(network, [torch.randn(8, 1, 4, 4)])
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in network.named_parameters())
