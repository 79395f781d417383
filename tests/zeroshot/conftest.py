"""One small network with stored weights and inputs, on which the published implementations were run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FIXTURES = Path(__file__).parent / "fixtures"


class TinyNet(nn.Module):
    """Four conv-BN-activation stages, two of them residual, global pooling, linear."""

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(2 * width)
        self.act1, self.act2, self.act3, self.act4 = (activation() for _ in range(4))
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, classes)

    def features(self, x: Tensor) -> Tensor:
        a = self.act1(self.bn1(self.conv1(x)))
        b = self.act2(self.bn2(self.conv2(a)) + a)
        c = self.act3(self.bn3(self.conv3(b)))
        return self.act4(self.bn4(self.conv4(c)) + c)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gap(self.features(x)).flatten(1))


@pytest.fixture(autouse=True)
def _on_the_accelerator(accelerator: torch.device) -> Iterator[None]:
    """Networks and images of these tests are made where --accelerator says, and computed in IEEE's float32."""
    if accelerator.type == "cpu":
        yield
        return
    with torch.device(accelerator), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name in ("tinynet", "naswot", "az_nas", "meco"):
        with np.load(FIXTURES / f"{name}.npz") as arrays:
            found |= arrays
    return found


@pytest.fixture(scope="session")
def published() -> dict[str, float]:
    return json.loads((FIXTURES / "published.json").read_text())


@pytest.fixture
def images(arrays: dict[str, np.ndarray], accelerator: torch.device) -> Tensor:
    """(16, 3, 16, 16)"""
    return torch.from_numpy(arrays["X"].copy()).to(accelerator)


@pytest.fixture
def labels(arrays: dict[str, np.ndarray], accelerator: torch.device) -> Tensor:
    """(16,) int64"""
    return torch.from_numpy(arrays["Y"].astype(np.int64)).to(accelerator)


@pytest.fixture
def tinynet(arrays: dict[str, np.ndarray]) -> Callable[..., TinyNet]:
    """TinyNet with the stored weights, whatever its activation."""

    def make(activation: Callable[[], nn.Module] = nn.ReLU) -> TinyNet:
        net = TinyNet(activation)
        weights = {name[2:]: torch.from_numpy(a.copy()) for name, a in arrays.items() if name[:2] == "w/"}
        net.load_state_dict(net.state_dict() | weights)  # an activation can have weights of its own
        return net

    return make
