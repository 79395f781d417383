"""Scores become trials one by one, are ranked among all of them, and are never computed twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwnas import scored as module
from hwnas.errors import PredictorError
from hwnas.run import score_study
from hwnas.scored import REASONS, SCORES, rank, ranked, score_networks, scored_front
from hwnas.search.study import failed, recorded
from hwnas.sections import SearchSection, TrainSection
from hwnas.space import Arch
from hwnas.spaces import make_space
from hwnas.train.data import load_data
from hwnas.zeroshot import ScoreResult

NAMES = ["naswot", "synflow"]


class Scorers:
    """Scores that follow from the first slots; naswot is undefined for some, and everything for others."""

    seen: list[Arch]
    die_after: int | None = None

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> Scorers:
        return self

    def __exit__(self, *_: object) -> None: ...

    def score(self, archs: list[Arch]) -> Any:
        for arch in reversed(archs):  # in no particular order
            if self.die_after is not None and len(self.seen) >= self.die_after:
                raise KeyboardInterrupt
            self.seen.append(arch)
            one = ScoreResult(None, "dead", 0.1) if arch[0] == 0 else ScoreResult(float(sum(arch)), None, 0.1)
            other = ScoreResult(None, "flat", 0.1) if arch[:2] == (0, 0) else ScoreResult(float(arch[1]), None, 0.1)
            yield arch, {"naswot": one, "synflow": other}


@pytest.fixture
def scorers(monkeypatch: pytest.MonkeyPatch) -> type[Scorers]:
    monkeypatch.setattr(Scorers, "seen", [], raising=False)
    monkeypatch.setattr(Scorers, "die_after", None)
    monkeypatch.setattr(module, "Scorers", Scorers)
    monkeypatch.setattr("hwnas.search.assisted.ROUNDS", 1)  # each takes a second
    return Scorers


def run_in(folder: Path, sampler: str = "surrogate", limit: float | None = None) -> Any:
    space = make_space("nasbench201", {"in_channels": 1, "resolution": 8})
    return SimpleNamespace(
        folder=folder,
        space=space,
        data=load_data("digits"),
        recipe=SimpleNamespace(
            seed=0,
            search=SearchSection.model_validate(
                {"score": NAMES, "evaluations": 24, "score_sampler": sampler}
                | ({} if limit is None else {"latency": f"{limit} ms"})
            ),
            train=TrainSection(device="cpu"),
        ),
        predictor=SimpleNamespace(predict_ms=lambda archs: archs.sum(axis=1) + 1.0),
        searched_ms=lambda archs: archs.sum(axis=1) + 1.0,
        progress=lambda *_: None,
    )


@pytest.mark.parametrize("sampler", ["surrogate", "RandomSampler"])
def test_every_scored_network_is_a_trial_with_all_its_scores(
    scorers: type[Scorers], tmp_path: Path, sampler: str
) -> None:
    run = run_in(tmp_path, sampler)
    score_networks(run)
    trials, undefined = recorded(score_study(run)), failed(score_study(run))
    assert len(trials) + len(undefined) == 24 == len(scorers.seen)
    assert set(undefined.values()) <= {"dead; flat"}
    assert all(arch[:2] == (0, 0) for arch in undefined)
    for arch, trial in trials.items():
        assert trial.user_attrs[SCORES]["synflow"] == arch[1]
        assert trial.user_attrs[REASONS] == ({"naswot": "dead"} if arch[0] == 0 else {})
        assert trial.values[0] <= 0
        assert trial.values[1] == sum(arch) + 1


def test_a_trials_value_is_its_rank_among_those_before_it(scorers: type[Scorers], tmp_path: Path) -> None:
    run = run_in(tmp_path)
    score_networks(run)
    rows, checked = [], 0
    for arch in scorers.seen:
        rows.append([np.nan if arch[0] == 0 else float(sum(arch)), np.nan if arch[:2] == (0, 0) else float(arch[1])])
        trial = recorded(score_study(run)).get(arch)
        if trial is not None:
            assert trial.values[0] == pytest.approx(rank(("synflow", "macs"), np.array(rows))[-1])
            checked += 1
    assert checked > 10


def test_what_was_scored_before_a_kill_is_not_scored_again(scorers: type[Scorers], tmp_path: Path) -> None:
    scorers.die_after = 17
    with pytest.raises(KeyboardInterrupt):
        score_networks(run_in(tmp_path / "cut"))
    scorers.die_after = None
    score_networks(run_in(tmp_path / "cut"))
    assert len(scorers.seen) == len(set(scorers.seen)) == 24
    scorers.seen.clear()
    score_networks(run_in(tmp_path / "whole"))
    (one, a), (other, b) = (ranked(run_in(tmp_path / name)) for name in ("cut", "whole"))
    assert dict(zip(one, a.tolist(), strict=True)) == dict(zip(other, b.tolist(), strict=True))


def test_the_front_is_ranked_among_all(scorers: type[Scorers], tmp_path: Path) -> None:
    run = run_in(tmp_path, limit=18.0)
    score_networks(run)
    front = scored_front(run)
    archs, values = ranked(run)
    assert [one.predicted_ms for one in front] == sorted(one.predicted_ms for one in front)
    assert front[-1].value == max(values[:, 0])
    assert front[-1].place == 1
    best = max(archs, key=lambda arch: arch[1])
    assert next(one.places["synflow"] for one in front if one.arch[1] == best[1]) == 1
    assert all(one.predicted_ms <= 18 for one in front)
    run.recipe.search = run.recipe.search.model_copy(update={"latency": 0.5})
    with pytest.raises(PredictorError, match=f"none of the {len(archs)} scored"):
        scored_front(run)


def test_one_score_is_searched_as_it_is() -> None:
    assert rank(("macs",), np.array([[3.0], [1e9], [np.nan]])).tolist()[:2] == [3.0, 1e9]
