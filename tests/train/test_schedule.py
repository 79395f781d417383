from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hwnas.train.schedule import build_optimizer, epochs_left, rate_factor


@pytest.mark.parametrize(
    ("progress", "warmup", "expected"),
    [
        (0.0, 0.2, 0.0),
        (0.1, 0.2, 0.5),
        (0.2, 0.2, 1.0),
        (0.6, 0.2, 0.5),
        (1.0, 0.2, 0.0),
        (0.0, 0.0, 1.0),
        (0.25, 0.0, 0.5 * (1 + math.cos(math.pi / 4))),
        (0.25, 3.0, 0.5),  # more warm-up than training: half of it warms up
    ],
)
def test_the_rate_warms_up_and_follows_the_cosine(progress: float, warmup: float, expected: float) -> None:
    assert rate_factor(progress, warmup) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("epoch", "seconds", "max_seconds", "expected"),
    [
        (3, 1e9, None, 7),  # no limit
        (0, 0.0, 1e-9, 10),  # nothing is known before the first epoch
        (2, 2.0, 5.0, 3),
        (2, 2.0, 4.5, 3),  # the epoch that passes the limit counts
        (2, 2.0, 100.0, 8),
        (2, 2.0, 1.0, 1),
    ],
)
def test_epochs_that_fit(epoch: int, seconds: float, max_seconds: float | None, expected: int) -> None:
    assert epochs_left(10, epoch, seconds, max_seconds) == expected


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_vectors_are_not_decayed_and_frozen_weights_not_trained(name: str) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    module[2].weight.requires_grad = False
    optimizer = build_optimizer(module, name, 0.01, torch.device("cpu"))  # type: ignore[arg-type]
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert [id(weight) for weight in decayed["params"]] == [id(module[0].weight)]
    assert {weight.ndim for weight in others["params"]} == {1}
    assert len(others["params"]) == 4
