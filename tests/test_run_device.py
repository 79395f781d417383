"""A run trains and scores on the device of its recipe, and its files do not depend on which that was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas import pipeline, scoring, training
from hwnas.errors import RecipeError
from hwnas.scored import scoring_of
from hwnas.sections import SearchSection, TrainSection
from hwnas.spaces import make_space
from hwnas.train.data import load_data
from hwnas.train.loop import TrainResult
from hwnas.zeroshot import ScoreResult

SPACE = {
    "resolutions": [8], "depths": [1, 2], "stage_widths": [8], "stage_strides": [1], "se": [False],
    "activations": ["relu"], "in_channels": 1, "num_classes": 10,
}  # fmt: skip


class Network(nn.Module):
    """Remembers where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.went: list[str] = []

    def to(self, device: Any, *_: Any, **__: Any) -> Network:
        self.went.append(str(device))
        return self

    def cpu(self) -> Network:
        return self.to("cpu")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    monkeypatch.setattr(training, "build", lambda run, arch: network)
    monkeypatch.setattr(training, "attach", lambda *_: None)
    return network


def run_of(device: str, folder: Path) -> Any:
    return SimpleNamespace(
        recipe=SimpleNamespace(
            seed=0,
            search=SearchSection(score="naswot", score_batch=4, score_draws=1),
            train=TrainSection(device=device),
        ),
        folder=folder,
        inherits=False,
        data=load_data("digits"),
        space=make_space("mobilenetv3", SPACE),
        predictor=SimpleNamespace(predict_ms=lambda archs: np.ones(1)),
        searched_ms=lambda archs: np.ones(1),
        progress=lambda *_: None,
        network_name=lambda arch: "net",
        open_folder=lambda: pytest.fail("the run began"),
    )


@pytest.mark.parametrize(
    ("device", "sees", "used"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_training_is_where_the_recipe_says_and_weights_are_saved_from_the_cpu(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, sees: bool, used: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    monkeypatch.setattr(training, "save_weights", lambda module, path: module.went.append("saved"))
    trained: list[str] = []

    def train(module: Any, *_: Any, device: torch.device, **__: Any) -> TrainResult:
        trained.append(str(device))
        return TrainResult(1, 1, 1, 1, 1)

    monkeypatch.setattr(training, "train", train)
    run: Any = run_of(device, tmp_path)
    trial: Any = SimpleNamespace(user_attrs={})
    study: Any = None
    checkpoint = tmp_path / "net.checkpoint"
    training._train(run, study, trial, (0,) * 11, 1.0, checkpoint, lambda *_: None, lambda: True)
    assert trained == [used]
    assert network.went == ["cpu", "saved"]


def test_scores_are_where_the_recipe_says(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(names: tuple[str, ...], module: Any, images: torch.Tensor, labels: torch.Tensor, seed: int) -> Any:
        assert images.shape == (4, 1, 8, 8)
        assert {images.device, labels.device} == {torch.device("cpu")}
        return {names[0]: ScoreResult(1.0, None, 0.1)}

    monkeypatch.setattr(scoring, "compute_scores", scores)
    monkeypatch.setattr(scoring, "build_seeded", lambda space, arch, seed: network)
    scoring_of(run_of("cpu", tmp_path)).score((0,) * 11)
    assert network.went == ["cpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_a_gpu_that_is_not_there_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'train\.device = "cuda"'):
        pipeline.run_all(run_of("cuda", tmp_path))
