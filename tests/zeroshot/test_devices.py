"""Scores of networks on a GPU, as far as it can be seen without one: where every tensor is."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hwnas.zeroshot import load_score, zen
from hwnas.zeroshot.codes import ActivationCodes
from hwnas.zeroshot.probe import Probe


class Generators:
    """Those of GPUs, for any number of them."""

    def __getitem__(self, gpu: int) -> torch.Generator:
        return torch.Generator()


def small_net() -> nn.Module:
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Hardswish()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_tensor_of_a_score_is_where_the_network_is(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """An operator of tensors on two devices is an error, on an imagined GPU too: there the numbers are missing."""
    monkeypatch.setattr(Tensor, "__float__", lambda self: 1.0)
    monkeypatch.setattr(Tensor, "__bool__", lambda self: True)
    monkeypatch.setattr(torch, "equal", lambda one, other: False)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "default_generators", Generators())
    with FakeTensorMode():
        with torch.device(device):
            net, images = small_net(), torch.rand(4, 3, 16, 16)
        assert Probe(net, images).seen(ActivationCodes).kernel.device.type == device
        assert zen.score(Probe(net, images)) == 0.0  # the logarithm of 1, over and over
        for name in ("linear_regions", "meco", "macs", "params"):
            assert math.isfinite(load_score(name)(Probe(net, images)))
        assert {weight.device.type for weight in net.parameters()} == {device}
        other = images.to("cpu") if device == "cuda" else torch.rand(4, 3, 16, 16, device="cuda")
        with pytest.raises(RuntimeError, match="device"):
            net(other)
