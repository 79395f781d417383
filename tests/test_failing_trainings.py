"""A training that fails in any way is a failed trial with its reason, and the search goes on; a disk or storage that
fails is no network's fault."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from toy_runs import recipe_text, toy_run

from hwnas import training
from hwnas.errors import RunError
from hwnas.run import Run, train_study
from hwnas.search.study import ARCH, REASON
from hwnas.search.workers import Worker
from hwnas.searching import _Search, search_networks
from hwnas.train import loop
from hwnas.trained import SUFFIX, trained_front


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return toy_run(recipe_text(tmp_path, "lemonade"))


def trials_of(run: Run) -> list[FrozenTrial]:
    return train_study(run).get_trials(deepcopy=False)


def break_trainings(monkeypatch: pytest.MonkeyPatch, which: set[int], fault: Any) -> None:
    """Let the trainings of these numbers, counted from 1, meet a fault in their first epoch."""
    seen: list[int] = []
    epoch = loop._train_epoch

    def broken(module: Any, *arguments: Any) -> float:
        if id(module) not in seen:
            seen.append(id(module))
            kept.append(module)  # so that no other gets its id
        if len(seen) in which and seen[-1] == id(module):
            return float(fault())
        return epoch(module, *arguments)

    kept: list[Any] = []
    monkeypatch.setattr(loop, "_train_epoch", broken)


def fail(error: BaseException) -> Any:
    def fault() -> float:
        raise error

    return fault


def spin() -> float:
    """An epoch without end."""
    while True:
        torch.zeros(100).add_(1)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (fail(ValueError("a kernel of 9 for 8 pixels")), "ValueError: a kernel of 9 for 8 pixels"),
        (fail(torch.OutOfMemoryError("tried to allocate 80 GiB")), "OutOfMemoryError: tried to allocate 80 GiB"),
        (fail(MemoryError()), "MemoryError"),
        (lambda: float("nan"), "TrainingFailed: training diverged in epoch 1"),
        (spin, "TrainingTimedOut: still training after 0.5 s, in the middle of an epoch"),
    ],
    ids=["exception", "GPU memory", "memory", "NaN", "time"],
)
def test_the_search_goes_on_without_the_network(
    fault: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.5 if fault is spin else 600
    run = toy_run(recipe_text(tmp_path, "lemonade", train=f"timeout_seconds = {seconds}"))
    break_trainings(monkeypatch, {2}, fault)
    search_networks(run)
    trials = trials_of(run)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", *["COMPLETE"] * 4]
    assert trials[1].user_attrs[REASON].startswith(reason)
    assert trials[1].values is None
    assert len({trial.user_attrs[ARCH] for trial in trials}) == 6
    assert trained_front(run)
    assert not [path for path in (run.folder / "weights").iterdir() if path.suffix != SUFFIX]


def test_when_everything_fails_the_search_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    break_trainings(monkeypatch, set(range(1, 9)), fail(RuntimeError("no kernel image")))
    with pytest.raises(RunError, match=r"the first 5 trainings failed: RuntimeError: no kernel image; .*--fresh"):
        search_networks(run)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_network_that_kills_its_process_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    break_trainings(monkeypatch, set(range(2, 99)), fail(Killed()))
    for _ in range(training.MAX_ATTEMPTS):
        with pytest.raises(Killed):
            search_networks(run)
        assert trials_of(run)[1].state == TrialState.RUNNING
    monkeypatch.undo()
    search_networks(run)
    trials = trials_of(run)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", *["COMPLETE"] * 4]
    assert re.match(r"the process died 5 times in the same epoch", trials[1].user_attrs[REASON])


def test_deaths_in_different_epochs_are_not_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy_run(
        recipe_text(tmp_path, "lemonade").replace("epochs = 2", "epochs = 9").replace("trainings = 6", "trainings = 2")
    )
    epoch = loop._train_epoch
    calls: list[int] = []

    def dying(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) % 2 == 0:  # every process finishes one epoch, and dies in the next
            raise Killed
        return epoch(*arguments)

    monkeypatch.setattr(loop, "_train_epoch", dying)
    for _ in range(8):
        with pytest.raises(Killed):
            search_networks(run)
    assert trials_of(run)[0].state == TrialState.RUNNING
    monkeypatch.undo()
    search_networks(run)
    assert {trial.state for trial in trials_of(run)} == {TrialState.COMPLETE}


@pytest.mark.parametrize("what", ["save_weights", "attach", "record_trial"])
def test_a_disk_or_storage_that_fails_costs_no_network(
    what: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, what, full)
    with pytest.raises(OSError, match="No space left"):
        search_networks(run)
    assert trials_of(run)[0].state == TrialState.RUNNING
    monkeypatch.undo()
    search_networks(run)
    other = toy_run(recipe_text(tmp_path / "other", "lemonade"))
    search_networks(other)
    assert [(trial.state, trial.values) for trial in trials_of(run)] == [
        (trial.state, trial.values) for trial in trials_of(other)
    ]


def test_a_trial_that_another_took_is_left_to_it(run: Run) -> None:
    study = train_study(run)
    with Worker(study) as worker:
        trials = _Search(run, study, worker, 1).next()
        assert trials is not None
        training.train_trial(run, trials[0], lambda *_: None, lambda: False)
    assert trials_of(run)[trials[0].number].state == TrialState.RUNNING
    assert "evaluated" not in trials_of(run)[trials[0].number].user_attrs
