"""LEMONADE whole at toy size: children begin with their parents' weights, which are worth more than none."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial
from torch import nn

from hwnas import training
from hwnas.recipe import parse_recipe
from hwnas.run import Run, train_study
from hwnas.search.samplers.base import PARENT
from hwnas.search.study import recorded
from hwnas.searching import search_networks
from hwnas.space import Arch, IntMatrix, rows_of
from hwnas.train.data import ImageData
from hwnas.train.device import training_device
from hwnas.train.loop import TrainConfig, TrainResult, train
from hwnas.train.schedule import DEFAULTS
from hwnas.trained import build, weights_path

START, TRAININGS = 3, 12
RECIPE = f"""
name = "toy"
runs = "RUNS"
[space]
name = "morph"
resolution = 8
widths = [8, 12, 16, 24]
kernels = [3]
stages = 2
max_depth = 2
[search]
sampler = "lemonade"
sampler_options = {{ start = {START} }}
trainings = {TRAININGS}
batch = {START}
[train]
epochs = 4
child_epochs = 1
threads = 1
device = "cpu"
"""


def run_in(folder: Path) -> Run:
    """The run of the recipe, with latencies that grow with the MACs."""
    text = RECIPE.replace("RUNS", folder.as_posix())
    run = Run(parse_recipe(text), text)

    def predict_ms(archs: IntMatrix) -> np.ndarray:
        return np.array([1e-6 * sum(block.macs for block in run.space.blocks(arch)) for arch in rows_of(archs)])

    vars(run)["predictor"] = SimpleNamespace(predict_ms=predict_ms)
    return run


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[TrainConfig]]:
    """The finished run, and how each of its networks was trained."""
    run, configs = run_in(tmp_path_factory.mktemp("lemonade")), []

    def noted(module: nn.Module, data: ImageData, size: int, config: TrainConfig, **options: Any) -> TrainResult:
        configs.append(config)
        return train(module, data, size, config, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", noted)
        search_networks(run)
    return run, configs


@pytest.fixture(scope="module")
def run(searched: tuple[Run, list[TrainConfig]]) -> Run:
    return searched[0]


def trials_of(run: Run) -> dict[Arch, FrozenTrial]:
    return recorded(train_study(run))


def is_exact(step: str) -> bool:
    """Whether all that changed is of a kind that keeps the function (LEMONADE, section 3)."""
    clauses = step.split("; ") if step else []
    widths = [re.search(r"width (\d+) -> (\d+)", clause) for clause in clauses]
    return bool(clauses) and all(
        int(width[2]) > int(width[1])
        if width
        else clause.endswith(("inserted", "separable -> plain", "none -> convex", "none -> concat"))
        for clause, width in zip(clauses, widths, strict=True)
    )


def test_children_train_shortly_from_the_weights_of_a_neighbour(run: Run) -> None:
    trials = trials_of(run)
    assert len(trials) == TRAININGS
    by_number = {trial.number: arch for arch, trial in trials.items()}
    for number, (arch, trial) in enumerate(trials.items()):
        assert weights_path(run, arch).exists()
        if number < START:
            assert (trial.user_attrs["epochs"], PARENT in trial.user_attrs) == (4, False)
            continue
        assert trial.user_attrs["epochs"] == 1
        assert trial.user_attrs["inherited"] != "the same architecture"
        parent = by_number[trial.user_attrs[PARENT]]
        assert arch in rows_of(run.space.neighbours(parent))


def test_children_train_at_half_the_peak_of_the_learning_rate_without_warming_up(
    searched: tuple[Run, list[TrainConfig]],
) -> None:
    configs = searched[1]
    assert {(config.learning_rate, config.warmup_epochs) for config in configs[:START]} == {(None, 1)}
    assert {(config.learning_rate, config.warmup_epochs) for config in configs[START:]} == {(DEFAULTS["sgd"][0] / 2, 0)}


def test_one_epoch_after_an_exact_step_is_worth_more_than_one_from_scratch(run: Run) -> None:
    trials = trials_of(run)
    exact = [(arch, trial) for arch, trial in trials.items() if is_exact(trial.user_attrs.get("inherited", ""))]
    assert exact
    config = TrainConfig(epochs=1, augment=run.recipe.train.augment, seed=0)
    fresh = [train(build(run, arch), run.data, 8, config, device=training_device("cpu")) for arch, _ in exact]
    inherited = np.mean([trial.user_attrs["test_accuracy"] for _, trial in exact])
    assert inherited > np.mean([result.test_accuracy for result in fresh]) + 10
