"""`hwnas score`: torchvision's networks and a space's architectures, alone and against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hwnas.cli import app
from hwnas.errors import HwnasError
from hwnas.score_command import _Scored, _show
from hwnas.zeroshot import COMBINED, SCORES, ScoreResult

RECIPE = """
name = "toy"
[data]
source = "digits"
[space]
name = "mobilenetv3"
resolutions = [8, 16]
depths = [1, 2]
stem_width = 8
stage_widths = [8, 16]
stage_strides = [1, 2]
se = [false, true]
activations = ["relu", "hardswish"]
head_widths = [32, 32]
"""
CELL = "nasbench201:3-0-3-1-0-3"
runner = CliRunner()


def score(*arguments: str) -> Any:
    result = runner.invoke(app, ["score", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.output)


def error(*arguments: str) -> str:
    result = runner.invoke(app, ["score", *arguments])
    assert isinstance(result.exception, HwnasError), result.output
    return str(result.exception)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "toy.toml"
    path.write_text(RECIPE)
    return str(path)


def test_a_network_of_torchvision() -> None:
    found = score("--model", "torchvision:squeezenet1_1", "--resolution", "48", "--scores", "params,naswot")
    assert found["images"] == "noise"
    assert found["models"][0]["shape"] == [3, 48, 48]
    assert found["models"][0]["scores"]["params"]["value"] == 1_235_496


def test_one_network_has_every_score_with_its_seconds(recipe: str) -> None:
    (model,) = score("--recipe", recipe, "--random", "1", "--batch", "8")["models"]
    assert list(model["scores"]) == list(SCORES)
    assert model["combined"] is model["place"] is None
    assert all((one["value"] is None) == bool(one["reason"]) for one in model["scores"].values())
    assert all(one["seconds"] >= 0 for one in model["scores"].values())


def test_several_are_ranked_and_the_best_is_shown_first(recipe: str) -> None:
    arguments = ("--recipe", recipe, "--random", "3", "--scores", "combined", "--batch", "8")
    found = score(*arguments)
    assert found["images"] == "digits"
    assert sorted(model["place"] for model in found["models"])[0] == 1
    assert all(list(model["scores"]) == list(COMBINED) for model in found["models"])
    best = max(found["models"], key=lambda model: model["combined"])
    shown = runner.invoke(app, ["score", *arguments], env={"COLUMNS": "200"}).output
    header = shown.partition("combined")[0]
    assert best["place"] == 1
    assert min(found["models"], key=lambda model: header.find(model["model"])) is best
    assert "(1) is the best" in shown
    assert score(*arguments)["models"][0]["scores"].keys() == found["models"][0]["scores"].keys()


def test_an_architecture_of_a_space_and_the_same_numbers_again() -> None:
    arguments = ("--model", CELL, "--scores", "naswot,params", "--batch", "4")
    first, second = (score(*arguments)["models"][0]["scores"] for _ in range(2))
    assert first["naswot"]["value"] == second["naswot"]["value"]
    assert first["params"]["value"] > 100_000
    other = score(*arguments, "--seed", "1")["models"][0]["scores"]
    assert other["naswot"]["value"] != first["naswot"]["value"]


def test_what_is_undefined_says_why() -> None:
    result = runner.invoke(app, ["score", "--model", CELL, "--scores", "naswot", "--batch", "1"])
    assert "naswot is undefined: one image has nothing to differ from" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to score"),
        (("--random", "2"), "give --recipe"),
        (("--model", "0-1"), "no --recipe has its space"),
        (("--model", "torchvision:resnet19"), "did you mean 'resnet1"),
        (("--model", "nasbench:0"), "unknown space"),
        (("--model", CELL, "--scores", "nasswot"), "did you mean 'naswot'"),
        (("--model", "torchvision:resnet18", "--data", "digits"), "1 channels, the network takes 3"),
    ],
)
def test_what_cannot_be_scored_is_explained(arguments: tuple[str, ...], message: str) -> None:
    assert message in error(*arguments)


def test_images_come_from_one_place(recipe: str) -> None:
    assert "give one of them" in error("--recipe", recipe, "--data", "digits", "--model", "0")


def test_who_has_no_say_among_the_best_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """All scores agree on 80 networks, but one has the best 20 the other way round."""
    order = np.arange(80.0)
    turned = np.where(order < 60, order, 139 - order)
    values = dict(zip(COMBINED, (order, order, order, turned, np.zeros(80)), strict=True))
    for count, said in ((80, True), (60, False)):
        found = [
            _Scored(
                str(n), (3, 8, 8), {name: ScoreResult(float(column[n]), None, 0.1) for name, column in values.items()}
            )
            for n in range(count)
        ]
        _show(found, np.arange(float(count)), None)
        assert ("order of the best quarter: jacob_cov" in capsys.readouterr().out) == said
