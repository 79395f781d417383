"""Scores of many architectures: the same numbers in one process and in several, and what happens when one dies."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hwnas import scoring as scoring_module
from hwnas.errors import RunError
from hwnas.scoring import Scorers, Scoring, mean_result
from hwnas.space import Arch, rows_of
from hwnas.zeroshot import ScoreResult

SMALL = {
    "resolutions": [16, 32],
    "depths": [1, 2],
    "stem_width": 8,
    "stage_widths": [8, 16],
    "stage_strides": [1, 2],
    "se": [False, True],
    "activations": ["relu", "hardswish"],
    "head_widths": [32, 32],
    "in_channels": 1,
    "num_classes": 10,
}


@pytest.fixture
def scoring() -> Scoring:
    generator = torch.Generator().manual_seed(0)
    return Scoring(
        names=("naswot", "synflow", "snip"),
        space_name="mobilenetv3",
        space_config=SMALL,
        images=torch.randint(256, (8, 1, 8, 8), generator=generator, dtype=torch.uint8),
        labels=torch.arange(8),
        mean=(0.5,),
        std=(0.25,),
        resolution=16,
        seed=0,
    )


def some_archs(scoring: Scoring, count: int) -> list[Arch]:
    return rows_of(scoring.space.canonical(scoring.space.sample(count, np.random.default_rng(0))))


def values(results: dict[str, ScoreResult]) -> dict[str, float | None]:
    return {name: result.value for name, result in results.items()}


def test_other_processes_give_the_same_numbers(scoring: Scoring) -> None:
    archs = some_archs(scoring, 6)
    here = {arch: values(scoring.score(arch)) for arch in archs}
    with Scorers(scoring, workers=2) as scorers:
        first = {arch: values(results) for arch, results in scorers.score(archs[:4])}
        rest = {arch: values(results) for arch, results in scorers.score(archs[4:])}
    assert first | rest == here
    assert all(value is not None for value in here[archs[0]].values())


def test_numbers_do_not_depend_on_the_number_of_threads(scoring: Scoring) -> None:
    (arch,) = some_archs(scoring, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = values(scoring.score(arch))
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert values(scoring.score(arch)) == two
    finally:
        torch.set_num_threads(before)


def test_draws_are_other_weights_on_other_images_and_scores_their_mean(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    (arch,) = some_archs(scoring, 1)
    alone = values(scoring.score(arch))
    seen: list[tuple[float, torch.Tensor]] = []
    compute_scores = scoring_module.compute_scores

    def remembered(names: tuple[str, ...], module: torch.nn.Module, images: torch.Tensor, *rest: Any, **more: Any):
        seen.append((float(next(module.parameters()).detach().sum()), images))
        return compute_scores(names, module, images, *rest, **more)

    monkeypatch.setattr(scoring_module, "compute_scores", remembered)
    found = replace(scoring, draws=2).score(arch)
    (one, first), (other, second) = seen
    assert one != other
    assert not torch.equal(first, second)
    assert len(first) == len(second) == 4
    assert values(found) != alone


def test_a_score_is_the_mean_of_what_is_defined() -> None:
    one, other = ScoreResult(1.0, None, 0.25), ScoreResult(4.0, None, 0.5)
    dead = ScoreResult(None, "dead", 1.0)
    assert mean_result([one, dead, other]) == ScoreResult(2.5, None, 1.75)
    assert mean_result([dead, dead]) == ScoreResult(None, "dead", 2.0)


def test_images_shrink_in_proportion(scoring: Scoring) -> None:
    small, large = (0,) * 11, (1,) + (0,) * 10
    assert [scoring.size(arch) for arch in (small, large)] == [8, 16]
    assert [replace(scoring, resolution=64).size(arch) for arch in (small, large)] == [16, 32]


def test_processes_begin_only_when_they_are_worth_it(scoring: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    class Pool:
        def __init__(self, workers: int, *_: object) -> None:
            begun.append(workers)
            raise KeyboardInterrupt

    monkeypatch.setattr(scoring_module, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(scoring_module, "cores", lambda: 3)
    with Scorers(scoring) as scorers:
        assert len(list(scorers.score(some_archs(scoring, 3)))) == 3
    assert begun == []
    monkeypatch.setattr(scoring_module, "WORTH_SECONDS", 0.0)
    with Scorers(scoring) as scorers, pytest.raises(KeyboardInterrupt):
        list(scorers.score(some_archs(scoring, 8)))
    assert begun == [3]
    with Scorers(scoring, workers=1) as scorers:
        assert len(list(scorers.score(some_archs(scoring, 3)))) == 3
    assert begun == [3]


def test_a_process_that_dies_is_said(scoring: Scoring) -> None:
    with Scorers(scoring, workers=2) as scorers:
        found = scorers.score(some_archs(scoring, 400))
        next(found)
        pool = scorers._pool
        assert pool is not None
        for pid in list(pool._processes):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RunError, match=r"one of 2 processes that score networks died.*search\.workers = 1"):
            list(found)
