from __future__ import annotations

import math
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
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


def test_tensors_are_made_where_the_network_is(tinynet, images, labels):
    """Whatever the default device: on the one named here, tensors have no values."""
    net = tinynet()
    expected = compute_scores(SCORES, net, images, labels)
    with torch.device("meta"):
        found = compute_scores(SCORES, net, images, labels)
    assert {name: result.value for name, result in found.items()} == {n: r.value for n, r in expected.items()}


def test_degenerate_is_a_reason_beside_values(tinynet, images):
    results = compute_scores(SCORES, tinynet(), images[[0, 0]])
    assert results["naswot"].value is None
    assert "same code" in results["naswot"].reason
    assert all(results[name].reason is None and results[name].value > 0 for name in ("zen", "params", "macs"))
    assert all(result.seconds > 0 for result in results.values())


@pytest.mark.parametrize(("name", "hint"), [("nasswot", "did you mean 'naswot'"), ("xyz", "the scores: .*naswot, zen")])
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


@pytest.mark.parametrize("head", ["zeros", "drawn"])
def test_vision_transformer(head):
    torch.manual_seed(0)
    net = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    if head == "drawn":
        nn.init.normal_(net.heads.head.weight)
    results = compute_scores(SCORES, net, torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 7, 3]))
    reasons = {name: result.reason for name, result in results.items() if result.value is None}
    assert all(math.isfinite(result.value) for name, result in results.items() if name not in reasons)
    # zeros in the head, as torchvision leaves them: nothing before it has a gradient
    assert set(reasons) - {"synflow", "jacob_cov"} == {"expressivity", "progressivity", "trainability", "vkdnw"}
    assert ("is dead" in reasons.get("synflow", "")) == ("is constant" in reasons.get("jacob_cov", ""))
    assert ("synflow" in reasons) == (head == "zeros")
    assert head == "drawn" or "add up to 0.0" in reasons["synflow"]
    assert "1 blocks with feature maps" in reasons["expressivity"]
    assert "no batch of 4 images" in reasons["vkdnw"]


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.squeeze, self.excite = inplace, nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        gate = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)), inplace=self.inplace)
        gate = F.hardsigmoid(self.excite(gate), inplace=self.inplace)
        return x.mul_(gate) if self.inplace else x * gate


class ChannelsLast(nn.Module):
    """Layer normalisation over channels."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMALISATIONS = {
    "batch": lambda: nn.BatchNorm2d(8),
    "group": lambda: nn.GroupNorm(2, 8),
    "layer": ChannelsLast,
    "none": nn.Identity,
}


@pytest.mark.parametrize("norm", NORMALISATIONS)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardswish, nn.SiLU, nn.GELU])
def test_how_a_network_is_computed_changes_nothing(activation, norm):
    """In place or not, contiguous or with channels last."""

    def net(inplace):
        torch.manual_seed(0)
        act = activation if activation is nn.GELU else partial(activation, inplace=inplace)  # GELU is never in place
        first = nn.ReLU(inplace=inplace)  # of the images themselves
        body = [nn.Conv2d(3, 8, 3), NORMALISATIONS[norm](), act(), nn.Conv2d(8, 8, 3, 2, groups=8), Gate(inplace)]
        return nn.Sequential(
            *(first, *body, NORMALISATIONS[norm](), act(), nn.Conv2d(8, 8, 3), act()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(inplace=inplace), nn.Linear(8, 5)),
        )

    torch.manual_seed(1)
    images, labels = torch.randn(6, 3, 12, 12), torch.arange(6) % 5
    before = images.clone()
    expected = compute_scores(SCORES, net(False), images, labels)
    assert all(result.value is not None for result in expected.values()), expected
    in_place = compute_scores(SCORES, net(True), images, labels)
    last = torch.channels_last
    channels_last = compute_scores(
        SCORES, net(True).to(memory_format=last), images.contiguous(memory_format=last), labels
    )
    assert torch.equal(images, before)
    for name, result in expected.items():
        assert in_place[name].value == pytest.approx(result.value, rel=1e-4, abs=1e-6), name
        # the smallest eigenvalue of a tangent kernel is mostly rounding
        rel = 0.05 if name == "ntk" else 1e-3
        assert channels_last[name].value == pytest.approx(result.value, rel=rel, abs=1e-6), name


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
