"""Several processes on one search: one is killed, and nothing is lost, and nothing is done twice."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from toy_runs import recipe_text, toy_run

from hwnas import executors
from hwnas.errors import MissingPackageError, RunError
from hwnas.executors import local_processes
from hwnas.executors import supervise as supervising
from hwnas.executors.job import job_of, work
from hwnas.executors.supervise import Ending, supervise
from hwnas.run import Run, train_study
from hwnas.search.samplers.base import PARENT
from hwnas.search.study import ARCH
from hwnas.search.workers import WORKER
from hwnas.searching import count_trained
from hwnas.trained import SUFFIX

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


class Killer(threading.Thread):
    """Kills the first process that is seen with a trial, and remembers which trial that was."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.study, self.killed, self.trial = train_study(run), 0, -1

    def run(self) -> None:
        deadline = time.monotonic() + 120
        while self.trial < 0 and time.monotonic() < deadline:
            time.sleep(0.02)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if ARCH in trial.user_attrs:
                    self.killed, self.trial = process_of(trial), trial.number
                    os.kill(self.killed, signal.SIGKILL)
                    return


def process_of(trial: FrozenTrial) -> int:
    """The process that has or had a trial."""
    return int(trial.user_attrs[WORKER].split(":")[-2])


def search_and_kill(run: Run) -> None:
    """Every training is done once and to its end, though a worker is killed; its trial goes on elsewhere."""
    run.open_folder()
    killer = Killer(run)
    killer.start()
    executors.search(run)
    killer.join()
    trials = train_study(run).get_trials(deepcopy=False)
    assert count_trained(train_study(run)) == 6
    assert [trial.state.name for trial in trials if trial.state != TrialState.PRUNED] == ["COMPLETE"] * 6
    archs = [trial.user_attrs[ARCH] for trial in trials if ARCH in trial.user_attrs]
    assert len(set(archs)) == len(archs)
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            assert len(trial.user_attrs["curve"]) == (2 if PARENT not in trial.user_attrs else 1)
    assert trials[killer.trial].state == TrialState.COMPLETE
    assert process_of(trials[killer.trial]) != killer.killed
    assert not [path for path in (run.folder / "weights").iterdir() if path.suffix != SUFFIX]


def test_a_process_of_two_is_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    search_and_kill(toy_run(recipe_text(tmp_path, "lemonade", search='executor = "processes"\nworkers = 2')))


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_worker_on_ray_is_killed_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason='needs Ray: pip install "hwnas[ray]"')
    monkeypatch.setenv("RAY_ADDRESS", "local")  # a cluster of the test's own
    search_and_kill(toy_run(recipe_text(tmp_path, "lemonade", search='executor = "ray"\nworkers = 2')))
    gc.collect()  # here and now, with the warnings of what a first attempt to start it left behind


def test_a_ray_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[dict[str, object]] = []

    def init(**options: object) -> None:
        tries.append(options)
        raise Exception("The current node timed out during startup")  # as Ray does

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(RunError, match=r'Ray did not start: The current .* or search\.executor to "processes"'):
        executors.search(toy_run(recipe_text(tmp_path, "lemonade", search='executor = "ray"')))
    assert len(tries) == 2


def test_without_ray_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r'pip install "hwnas\[ray\]"'):
        executors.search(toy_run(recipe_text(tmp_path, "lemonade", search='executor = "ray"')))


class Fleet:
    """Workers whose endings are given beforehand, one list each."""

    def __init__(self, *endings: list[Ending]) -> None:
        self.endings, self.started, self.stopped = endings, [], 0

    def start(self, number: int) -> None:
        self.started.append(number)

    def ended(self, number: int) -> Ending | None:
        return self.endings[number].pop(0)

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(supervising, "_POLL_SECONDS", 0.0)
    return toy_run(recipe_text(tmp_path, "lemonade"))


def test_who_dies_is_started_again_and_who_is_done_is_not(run: Run) -> None:
    fleet = Fleet([Ending(died="signal SIGKILL"), Ending()], [Ending()])
    supervise(run, fleet, 2)
    assert (fleet.started, fleet.stopped) == ([0, 1, 0], 1)


def test_an_error_ends_the_others(run: Run) -> None:
    fleet = Fleet([Ending(error=RunError("the first 5 trainings failed"))], [Ending()])
    with pytest.raises(RunError, match="first 5 trainings"):
        supervise(run, fleet, 2)
    assert (fleet.started, fleet.stopped) == ([0, 1], 1)


def test_dying_without_end_has_an_end(run: Run) -> None:
    fleet = Fleet([Ending(died="exit code 1")] * 100)
    with pytest.raises(RunError, match=r"workers died 7 times and no training ended, the last one of: exit code 1"):
        supervise(run, fleet, 1)
    assert fleet.stopped == 1


def test_nothing_is_started_when_nothing_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet: Any = Fleet()
    monkeypatch.setattr(supervising, "count_trained", lambda study: 6)
    supervise(run, fleet, 3)
    assert (fleet.started, fleet.stopped) == ([], 0)


@pytest.mark.parametrize(
    ("visible", "gpus", "share", "expected"),
    [
        (None, 2, 1.0, ["0", "1", "0", "1"]),
        (None, 2, 0.5, ["0", "0", "1", "1"]),
        ("5,GPU-7", 2, 1.0, ["5", "GPU-7", "5", "GPU-7"]),
        (None, 0, 1.0, [None] * 4),
    ],
)
def test_workers_share_the_gpus(
    visible: str | None, gpus: int, share: float, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(local_processes.torch.cuda, "device_count", lambda: gpus)
    assert [local_processes._gpu_of(number, share) for number in range(4)] == expected


@pytest.mark.parametrize(("gpus", "section", "workers"), [(4, "gpus = 0.5", 8), (4, "workers = 3", 3), (0, "", 5)])
def test_as_many_workers_as_there_is_room_for(
    gpus: int, section: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_processes.torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(local_processes, "cores", lambda: 5)
    started: list[int] = []
    monkeypatch.setattr(local_processes, "supervise", lambda run, fleet, number: started.append(number))
    executors.search(toy_run(recipe_text(tmp_path, "lemonade", search=f'executor = "processes"\n{section}')))
    assert started == [workers]


def test_a_folder_that_a_machine_does_not_have_is_told(tmp_path: Path) -> None:
    run = toy_run(recipe_text(tmp_path, "lemonade"))
    error = work(replace(job_of(run, 2), folder=str(tmp_path / "none")))
    assert isinstance(error, RunError)
    assert "on a file system that they share" in str(error)
