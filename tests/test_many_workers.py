"""Many workers at once on one study: no network twice, and exactly as many trainings as there are to be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import Trial, TrialState
from toy_runs import recipe_text, toy_run

from hwnas import searching
from hwnas.run import Run, train_study
from hwnas.search import study as study_module
from hwnas.search import workers as module
from hwnas.search.processes import is_dead, this_process
from hwnas.search.study import ARCH, record_trial
from hwnas.search.workers import WORKER, Worker
from hwnas.searching import search_networks
from hwnas.space import Arch, SearchSpace, format_arch, parse_arch
from hwnas.training import EVALUATED

TRAININGS = 20


def first_free(trial: Trial, space: SearchSpace) -> Arch:
    """A sampler of one mind: every worker would choose the same, if it did not know of the others' choices."""
    taken = {one.user_attrs[ARCH] for one in trial.study.get_trials(deepcopy=False) if ARCH in one.user_attrs}
    time.sleep(0.02)
    archs = (space.check(tuple(arch)) for arch in space.sample(1000, np.random.default_rng(0)).tolist())
    return next(arch for arch in archs if format_arch(arch) not in taken)


def instantly(run: Run, trial: Trial, progress: Callable[[int, int], None], holds: Callable[[], bool]) -> None:
    """A training that takes a moment and cannot fail."""
    time.sleep(0.01)
    arch = parse_arch(trial.user_attrs[ARCH])
    trial.set_user_attr(EVALUATED, True)
    record_trial(train_study(run), run.space, arch, [float(sum(arch)), 1.0 + arch[0]], trial=trial)


@pytest.mark.parametrize("sampler", ["lemonade", "TPESampler", "of one mind"])
def test_no_network_twice_and_no_training_too_many(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sampler == "of one mind":
        monkeypatch.setattr(study_module, "suggest", first_free)
        sampler = "TPESampler"
    monkeypatch.setattr(searching, "train_trial", instantly)
    monkeypatch.setattr(searching, "_POLL_SECONDS", 0.05)
    text = recipe_text(tmp_path, sampler).replace("trainings = 6", f"trainings = {TRAININGS}")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            search_networks(toy_run(text), workers=4)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    trials = train_study(toy_run(text)).get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == TRAININGS
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({trial.user_attrs[ARCH] for trial in complete}) == TRAININGS
    assert len({trial.user_attrs[WORKER] for trial in complete}) > 1


@pytest.fixture
def study(tmp_path: Path) -> Any:
    return train_study(toy_run(recipe_text(tmp_path, "lemonade")))


def test_a_worker_that_does_not_beat_loses_its_trials(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLE_SECONDS", 0.01)
    # of another machine, so that only its heartbeat says whether it lives
    silent = Worker(study, beat=1000.0, grace=0.3)
    silent.name = "elsewhere/1:7:abc"
    with silent:
        trial = silent.begin()
        with Worker(study, beat=1000.0, grace=0.3) as other:
            assert (len(other.standing().own), other.companions()) == (0, 1)
            time.sleep(0.4)
            assert [each.number for each in other.standing().own] == [trial.number]
            assert other.companions() == 0
        assert not silent.holds(trial)


def test_a_beating_worker_keeps_its_trials(study: Any) -> None:
    with Worker(study, beat=0.05, grace=1.0) as one, Worker(study, grace=1.0) as other:
        trial = one.begin()
        time.sleep(1.2)
        assert (len(other.standing().own), other.standing().elsewhere) == (0, 1)
        assert one.holds(trial)


def test_an_enqueued_trial_is_begun_first(study: Any) -> None:
    study.enqueue_trial({"some": 1})
    with Worker(study) as worker:
        assert worker.begin().number == 0
        assert worker.begin().number == 1
        assert [trial.number for trial in worker.standing().own] == [0, 1]


def test_processes_have_names_by_which_they_are_known_dead() -> None:
    machine, _, number = this_process().rpartition(":")
    assert not is_dead(this_process())
    assert is_dead(f"{machine}:{2**22 + 1}")  # Linux gives no number so high
    assert not is_dead(f"elsewhere/1:{2**22 + 1}")
    assert not is_dead("")
    assert int(number) > 0
