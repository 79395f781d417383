"""A search that is killed anywhere and run again is, trial by trial, the search that was never killed."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toy_runs import recipe_text, story, toy_run

from hwnas.pipeline import search_stage

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks, and sends POSIX signals")
HERE = Path(__file__).parent


@functools.cache
def whole(folder: Path, sampler: str) -> Any:
    """What a search leaves that nobody kills."""
    run = toy_run(recipe_text(folder, sampler, name=sampler))
    search_stage(run)
    return json.loads(json.dumps(story(run)))


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


def python(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / script), *map(str, arguments)]


@pytest.mark.parametrize(("sampler", "seed", "kills"), [("lemonade", 2, 7), ("TPESampler", 1, 5), ("surrogate", 3, 2)])
def test_deaths_at_every_kind_of_moment_change_nothing(
    sampler: str, seed: int, kills: int, beside: Path, tmp_path: Path
) -> None:
    """Before, in and after a line of the journal; before and after a checkpoint or weights are renamed; in an epoch."""
    expected = whole(beside, sampler)
    (tmp_path / "toy.toml").write_text(recipe_text(tmp_path, sampler))
    command = python("killed_search.py", tmp_path / "toy.toml", seed, kills)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    deaths = found.pop("deaths")
    assert sum(deaths.values()) == kills
    assert len(deaths) > 1
    assert found == expected


PLACES = ("checkpoint", "safetensors")


@pytest.mark.parametrize("place", PLACES)
def test_sigkill_while_a_file_is_there_changes_nothing(place: str, beside: Path, tmp_path: Path) -> None:
    """With a checkpoint, with weights: each seen from outside, so the moment is a random one."""
    expected = whole(beside, "lemonade")
    (tmp_path / "toy.toml").write_text(recipe_text(tmp_path, "lemonade"))
    command = python("toy_runs.py", tmp_path / "toy.toml")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(tmp_path.glob(f"runs/toy/weights/*.{place}")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(random.Random(place).uniform(0, 0.1))
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = toy_run(recipe_text(tmp_path, "lemonade"))
    search_stage(again)
    assert json.loads(json.dumps(story(again))) == expected
