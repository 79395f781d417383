"""Only the centre of a kernel is computed where the rest meets padding, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hwnas.supernet.centre import CentreConv2d, compute_centres


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("groups", [1, 4])
def test_outputs_and_gradients_stay_the_same(size: int, stride: int, groups: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, 7, stride, 3, groups=groups)
    centre = copy.deepcopy(plain)
    compute_centres(nn.Sequential(centre))
    assert type(centre) is CentreConv2d
    x = torch.randn(3, 4, size, size)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [conv(each) for conv, each in zip((plain, centre), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*(each.grad for each in inputs))
    torch.testing.assert_close(plain.weight.grad, centre.weight.grad)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 1),
        nn.Conv2d(2, 2, 4, padding=2),
        nn.Conv2d(2, 2, (3, 5), padding=(1, 2)),
        nn.Conv2d(2, 2, 3, padding=2, dilation=2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    ],
    ids=lambda conv: repr(conv)[:60],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    compute_centres(nn.Sequential(conv))
    assert type(conv) is nn.Conv2d


def test_kernels_are_cropped_where_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    compute = torch.nn.functional.conv2d

    def spy(x: torch.Tensor, weight: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(tuple(weight.shape[2:]))
        return compute(x, weight, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("hwnas.supernet.centre.conv2d", spy)
    conv = CentreConv2d(1, 1, 7, padding=3)
    for size in (1, 2, 3):
        conv(torch.zeros(1, 1, size, size))
    assert seen == [(1, 1), (3, 3), (5, 5)]
