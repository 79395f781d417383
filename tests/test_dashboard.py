"""What a search leaves for optuna-dashboard and for samplers of Optuna: names, units, limits and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from toy_runs import SPACES, recipe_text, toy_run

from hwnas import searching
from hwnas.run import Run, train_study
from hwnas.search.constraints import breaches
from hwnas.search.problem import Objective
from hwnas.search.study import SKIPPED, open_study, record_trial, recorded
from hwnas.searching import search_networks
from hwnas.space import format_arch
from hwnas.spaces import make_space
from hwnas.trained import weights_path

LIMIT_MS = 0.045
SPACE = make_space("nasbench201", SPACES["nasbench201"])


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished search of TPE, in which the second network was measured above the limit."""
    folder = tmp_path_factory.mktemp("searched")
    run = toy_run(recipe_text(folder, "TPESampler", search=f'latency = "{LIMIT_MS * 1e3} us"'))
    slow: list[Any] = []

    def above_limit(_: Run, archs: list[Any], *, measure: bool = True) -> dict[Any, float]:
        if measure and not slow and len(archs) > 1:
            slow.append(archs[1])
        return {arch: 0.06 for arch in archs if arch in slow}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "above_limit", above_limit)
        search_networks(run)
    return run


def test_objectives_have_names_and_units_and_the_study_its_limit(searched: Run) -> None:
    study = train_study(searched)
    assert study.metric_names == ["accuracy (%)", "latency (ms)"]
    assert study.user_attrs["limits"] == {"latency (ms)": pytest.approx(LIMIT_MS)}


def test_every_trial_says_whether_it_keeps_the_limit(searched: Run) -> None:
    trials = train_study(searched).get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == 6
    for trial in complete:
        assert trial.system_attrs["constraints"] == [pytest.approx(trial.values[1] - LIMIT_MS)]
        assert trial.system_attrs["constraints"][0] <= 0
    (slow,) = [trial for trial in trials if "measured at" in trial.user_attrs.get(SKIPPED, "")]
    assert slow.system_attrs["constraints"] == [pytest.approx(0.06 - LIMIT_MS)]
    if hasattr(slow, "constraints"):
        assert slow.constraints["latency (ms)"] == pytest.approx(0.06 - LIMIT_MS)


def test_weights_are_artefacts_that_take_no_space(searched: Run) -> None:
    store = FileSystemArtifactStore(searched.folder / "artifacts")
    study = train_study(searched)
    for arch, trial in recorded(study).items():
        (meta,) = get_all_artifact_meta(trial, storage=study._storage)
        path = weights_path(searched, arch)
        assert meta.filename == path.name
        with store.open_reader(meta.artifact_id) as file:
            assert file.read() == path.read_bytes()
        assert (searched.folder / "artifacts" / meta.artifact_id).stat().st_nlink == 2
        assert json.dumps(trial.user_attrs)
        assert trial.user_attrs["arch"] == format_arch(arch)


def test_a_limit_to_be_reached_is_broken_from_below(tmp_path: Path) -> None:
    objectives = [Objective("accuracy", "%", "maximize", limit=60.0), Objective("latency", "ms", "minimize")]
    study = open_study(tmp_path / "journal.log", "s", objectives)
    assert breaches(study, [55.0, 1.0]) == {"accuracy (%)": 5.0}
    assert breaches(study, [62.0, 1.0]) == {"accuracy (%)": -2.0}
    record_trial(study, SPACE, (0,) * len(SPACE.slots), [55.0, 1.0])
    assert study.trials[0].system_attrs["constraints"] == [5.0]
    again = open_study(tmp_path / "journal.log", "s", [Objective("accuracy", "%", "maximize"), objectives[1]])
    assert breaches(again, [55.0, 1.0]) == {}


def test_optunas_samplers_see_which_trials_are_allowed(tmp_path: Path) -> None:
    study = open_study(tmp_path / "j.log", "s", [Objective("latency", "ms", "minimize", limit=2.0)])
    record_trial(study, SPACE, (0,) * len(SPACE.slots), [3.0])
    if hasattr(study.trials[0], "constraints"):
        with pytest.raises(ValueError, match="feasible"):
            study.best_trial  # noqa: B018
