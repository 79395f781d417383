from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision import models

from hwnas.errors import DataError, RecipeError
from hwnas.zeroshot import SCORES, ScoreResult, compute_scores


def test_a_result_depends_on_the_seed_only(tinynet, images, labels):
    net = tinynet()
    every = compute_scores(SCORES, net, images, labels, seed=3)
    assert list(every) == list(SCORES)
    for name in SCORES:
        assert compute_scores([name], net, images, labels, seed=3)[name].value == every[name].value
    assert compute_scores(["zen"], net, images, seed=4)["zen"].value != every["zen"].value


def test_degenerate_is_a_reason_beside_values(tinynet, images):
    results = compute_scores(SCORES, tinynet(), images[[0, 0]])
    assert results["naswot"].value is None
    assert "same code" in results["naswot"].reason
    assert all(results[name].reason is None and results[name].value > 0 for name in ("zen", "params", "macs"))
    assert all(result.seconds > 0 for result in results.values())


@pytest.mark.parametrize(("name", "hint"), [("nasswot", "did you mean 'naswot'"), ("xyz", "the scores: naswot, zen")])
def test_unknown_score(tinynet, images, name, hint):
    with pytest.raises(RecipeError, match=hint):
        compute_scores(["params", name], tinynet(), images)


@pytest.mark.parametrize(
    "batch",
    [torch.rand(3, 8, 8), torch.rand(0, 3, 8, 8), torch.ones(2, 3, 8, 8).int(), torch.full((2, 3, 8, 8), math.nan)],
)
def test_no_batch_of_images(tinynet, batch):
    with pytest.raises(DataError, match="images"):
        compute_scores(["params"], tinynet(), batch)


def test_errors_of_the_network_are_not_hidden(tinynet, images):
    with pytest.raises(RuntimeError, match="channels"):
        compute_scores(["naswot"], tinynet(), images[:, :2])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"])
def test_real_networks(name, memory_format):
    torch.manual_seed(0)
    net = getattr(models, name)(weights=None)  # stochastic depth, dropout, groups, gates
    images = torch.randn(4, 3, 64, 64).to(memory_format=memory_format)
    results = compute_scores(SCORES, net, images, torch.tensor([0, 3, 7, 3]))
    assert all(result.value is not None and math.isfinite(result.value) for result in results.values()), results


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 3, 1, 1), (2, 3, 1, 1), (4, 3, 5, 7)])
@pytest.mark.parametrize("classes", [0, 3])
def test_any_shape_is_a_value_or_a_reason(shape, classes):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)] if classes else []
    body = [nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU()]
    net = nn.Sequential(*body, *head)
    labels = torch.arange(shape[0]) % 3
    for name, result in compute_scores(SCORES, net, torch.randn(shape), labels).items():
        assert isinstance(result, ScoreResult)
        assert (result.value is None) != (result.reason is None), name
        assert result.value is None or math.isfinite(result.value)
        assert result.value is not None or name not in ("params", "macs", "layers", "synflow")
        assert result.value is not None or shape[0] < 4 or (not classes and "logits" in result.reason)


def test_the_names_are_known_without_torch():
    code = "import sys, hwnas.zeroshot; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
