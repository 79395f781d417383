"""Training a supernet: it learns, its subnets too, and a killed training goes on as if it had not been."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from supernet.spaces import mobile

from hwnas.errors import RecipeError
from hwnas.space import rows_of
from hwnas.supernet.elastic import Supernet
from hwnas.supernet.extremes import largest_arch, smallest_arch
from hwnas.supernet.images import SupernetImages
from hwnas.supernet.recalibrate import recalibrate
from hwnas.supernet.train import SupernetConfig, train_supernet
from hwnas.train.data import ImageData, load_data
from hwnas.train.loop import TrainingFailed, evaluate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture(scope="module")
def few(digits: ImageData) -> ImageData:
    return replace(digits, x_train=digits.x_train[:96], y_train=digits.y_train[:96])


class Killed(Exception):
    pass


def trained(data: ImageData, config: SupernetConfig, checkpoint: Path | None = None, die_at: int = 0) -> Supernet:
    """A supernet after its training, which dies the `die_at`th time that progress is told."""
    supernet, told = Supernet(mobile(width_mults=[1.0], kernels=[3, 5])), 0

    def progress(stage: str, done: int, of: int, facts: dict[str, float]) -> None:
        nonlocal told
        told += 1
        if told == die_at:
            raise Killed

    train_supernet(supernet, data, config, checkpoint=checkpoint, progress=progress, max_threads=1)
    return supernet


@pytest.mark.parametrize("method", ["progressive", "sandwich"])
def test_subnets_of_all_sizes_learn(digits: ImageData, method: str) -> None:
    data = replace(digits, x_train=digits.x_train[:500], y_train=digits.y_train[:500])
    config = SupernetConfig(method=method, epochs=6, batch_size=32, augment="none")
    space = mobile(resolutions=[8], width_mults=[1.0], kernels=[3, 5], expands=[2, 4])
    supernet = Supernet(space)
    train_supernet(supernet, data, config, max_threads=1)
    images = SupernetImages(data, space, CPU)
    accuracies = []
    for arch in [largest_arch(space), smallest_arch(space), *rows_of(space.sample(2, np.random.default_rng(0)))]:
        network = recalibrate(supernet.subnet(arch), images.calibration(arch))
        accuracies.append(evaluate(network, digits.x_valid, digits.y_valid, digits.mean, digits.std, 8))
    assert min(accuracies) > 20  # chance is 10
    assert np.mean(accuracies) > 30


@pytest.mark.parametrize(
    ("method", "stages", "others"),
    [
        ("progressive", 5, {"augment": "randaugment", "mix": "mixup_cutmix", "ema": 0.9}),
        ("sandwich", 1, {}),
    ],
)
def test_a_killed_training_goes_on_as_if_it_had_not_been(
    few: ImageData, tmp_path: Path, method: str, stages: int, others: dict[str, Any]
) -> None:
    config = SupernetConfig(method=method, epochs=6, batch_size=32, checkpoint_seconds=0, **others)
    whole = trained(few, config).state_dict()
    resumed, kills = None, 0
    while resumed is None:
        with suppress(Killed):  # told at the first step of a process and at the end of a stage, before that is saved
            kills += 1
            resumed = trained(few, config, tmp_path / "checkpoint", die_at=2).state_dict()
    assert kills > stages
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_another_seed_trains_another_supernet(few: ImageData) -> None:
    config = SupernetConfig(method="sandwich", epochs=1, batch_size=48)
    first, same, other = (trained(few, replace(config, seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_what_is_trained_is_the_average_over_the_weights(few: ImageData) -> None:
    config = SupernetConfig(method="sandwich", epochs=0.01, batch_size=48)
    first = Supernet(mobile(width_mults=[1.0], kernels=[3, 5])).state_dict()
    last, average = (trained(few, replace(config, ema=ema)).state_dict() for ema in (0.0, 0.9))
    for name, value in first.items():  # after one step
        torch.testing.assert_close(average[name], value * 2 / 11 + last[name] * 9 / 11)
    assert any(not torch.allclose(average[name], last[name], rtol=1e-2) for name in first)


def test_channels_are_sorted_in_the_average_too(few: ImageData) -> None:
    # so slow that a stage changes nothing but the order of channels
    config = SupernetConfig(method="progressive", epochs=0.01, batch_size=48, learning_rate=1e-12)
    last, average = (trained(few, replace(config, ema=ema)).state_dict() for ema in (0.0, 0.9))
    for name, value in last.items():
        torch.testing.assert_close(average[name], value)
    name = "shared.stage0_0.0.weights.layers.expand.conv.weight"
    assert not torch.allclose(last[name], Supernet(mobile(width_mults=[1.0], kernels=[3, 5])).get_parameter(name))


def test_a_budget_in_minutes_ends_when_it_is_spent(few: ImageData, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = SupernetConfig(method="progressive", minutes=0.01)
    stages: list[str] = []

    def progress(stage: str, done: int, of: int, facts: dict[str, float]) -> None:
        stages.append(stage)
        assert set(facts) == {"train_loss", "learning_rate", "images_per_second", "seconds_left"}

    train_supernet(Supernet(mobile()), few, config, progress=progress, max_threads=1, log_dir=tmp_path)
    assert list(dict.fromkeys(stages)) == [
        f"supernet: {name} ({number} of 5)"
        for number, name in enumerate(("largest", "kernel", "depth 2", "expand 1", "expand 2"), 1)
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"largest", "kernel", "depth 2", "expand 1", "expand 2"}


def test_a_training_that_diverges_says_so(few: ImageData) -> None:
    with pytest.raises(TrainingFailed, match=r"diverged .* lower supernet.learning_rate \(1e\+30\)"):
        trained(few, SupernetConfig(method="sandwich", epochs=3, learning_rate=1e30))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "epochs must be given, or minutes"),
        ({"epochs": 1, "minutes": 1}, "epochs must be given, or minutes"),
        ({"epochs": 0}, "above 0"),
        ({"minutes": float("inf")}, "above 0"),
        ({"epochs": 1, "batch_size": 1}, "batch_size must be at least 2"),
        ({"epochs": 1, "learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"epochs": 1, "augment": "mixup"}, "augment must be one of"),
        ({"epochs": 1, "mix": "crop"}, "mix must be one of"),
        ({"epochs": 1, "ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"epochs": 1, "seed": -1}, "seed must be 0 or above"),
    ],
)
def test_settings_that_cannot_be_used_are_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        SupernetConfig(**settings)
