"""Studies in every kind of storage: what several processes write is there once, and errors hide passwords."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from hwnas.errors import MissingPackageError, RecipeError, RunError
from hwnas.recipe import parse_recipe
from hwnas.search import storage as module
from hwnas.search.problem import Objective
from hwnas.search.samplers import make_sampler
from hwnas.search.storage import check_url, open_storage, shared_name, shown
from hwnas.search.study import ask_arch, open_study, record_trial, recorded
from hwnas.search.workers import Worker

POSTGRESQL = "HWNAS_TEST_POSTGRESQL"
OBJECTIVES = [Objective("accuracy", "%", "maximize"), Objective("latency", "ms", "minimize", limit=5.0)]


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    """Optuna's gRPC proxy before an SQLite database."""
    pytest.importorskip("grpc", reason='needs grpcio: pip install "hwnas[storage]"')
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = (
        "import optuna; optuna.storages.run_grpc_proxy_server("
        f"optuna.storages.RDBStorage('sqlite:///{tmp_path}/behind.db'), host='localhost', port={port})"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    yield f"grpc://localhost:{port}"
    server.kill()
    server.wait()


@pytest.fixture(params=["journal", "sqlite", "grpc", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "grpc":
        return str(request.getfixturevalue("proxy"))
    if request.param == "postgresql":
        if not (found := os.environ.get(POSTGRESQL)):
            pytest.skip(f"needs a PostgreSQL database whose URL is in the environment variable {POSTGRESQL}")
        return found
    return {"journal": f"journal:{tmp_path}/shared/all.log", "sqlite": f"sqlite:///{tmp_path}/shared/all.db"}[
        request.param
    ]


def test_studies_of_several_runs_live_in_one_storage(url: str, tmp_path: Path, toy: Any) -> None:
    space = toy.ToySpace()
    names = [shared_name(tmp_path / user / "runs" / "toy") for user in ("a", "b")]
    assert names[0] != names[1], "two runs of one name"
    for value, name in enumerate(names):
        study = open_study(url, f"{name}:train", OBJECTIVES, make_sampler("RandomSampler", value))
        for _ in range(3):
            trial, arch = ask_arch(study, space)
            record_trial(study, space, arch, [float(value), 1.0], {"curve": [1.0, 2.0]}, trial=trial)
    for value, name in enumerate(names):
        found = recorded(open_study(url, f"{name}:train", OBJECTIVES))
        assert [trial.values for trial in found.values()] == [[float(value), 1.0]] * 3
        assert all(trial.user_attrs["curve"] == [1.0, 2.0] for trial in found.values())
        assert all(trial.system_attrs["constraints"] == [-4.0] for trial in found.values())


def test_a_trial_of_a_dead_worker_is_adopted_and_one_of_a_live_one_is_not(url: str, tmp_path: Path) -> None:
    study = open_study(url, f"{shared_name(tmp_path / 'x')}:train", OBJECTIVES)
    with Worker(study, grace=60.0) as one, Worker(study, grace=60.0) as other:
        trial = one.begin()
        assert [each.number for each in one.standing().own] == [trial.number]
        seen = other.standing()
        assert (len(seen.own), seen.elsewhere) == (0, 1)
        assert other.companions() == 1
    # it has left without an end of its trial
    with Worker(study) as third:
        assert [each.number for each in third.standing().own] == [trial.number]
        assert third.holds(trial)
        assert not one.holds(trial)
        assert third.companions() == 0
        study.tell(trial, state=TrialState.FAIL)
        assert not third.holds(trial)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("trials.db", "trials.db is no storage; use one of journal:PATH, sqlite:///PATH"),
        ("journal:", "is no storage"),
        ("grpc://machine", "names no host and port; write grpc://HOST:PORT"),
        ("grpc://machine:port", "names no host and port"),
        ("", "is no storage"),
    ],
)
def test_what_is_no_storage_is_refused_by_the_recipe(url: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_url(url)
    with pytest.raises(RecipeError, match=r"search\.storage = .*" + message):
        parse_recipe(f'name = "a"\n[search]\nstorage = "{url}"')


@pytest.mark.parametrize(
    "url", ["postgresql://me:s3cret@localhost:1/x", "postgresql+psycopg://me:s3:c/r@e@t@localhost:1/x"]
)
def test_a_server_that_is_away_is_told_without_its_password(url: str) -> None:
    pytest.importorskip("psycopg", reason='needs psycopg: pip install "hwnas[storage]"')
    with pytest.raises(
        RunError, match=r"(?s)://me:\*\*\*@localhost:1/x cannot be used: .*is its server running"
    ) as caught:
        open_storage(url)
    assert not any(part in str(caught.value) for part in ("s3cret", "s3:c", "e@t"))
    assert shown(url).endswith("me:***@localhost:1/x")


def test_no_proxy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grpc", reason='needs grpcio: pip install "hwnas[storage]"')
    monkeypatch.setattr(module, "_GRPC_SECONDS", 0.2)
    with pytest.raises(RunError, match=r"no gRPC proxy of Optuna answers at grpc://localhost:1; start one with"):
        open_storage("grpc://localhost:1")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'needs grpcio and protobuf: pip install "hwnas\[storage\]"'):
        open_storage("grpc://localhost:2")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingPackageError, match=r'me:\*\*\*@h/x needs psycopg: pip install "hwnas\[storage\]"'):
        open_storage("postgresql://me:pw@h/x")


def test_the_name_of_a_runs_studies_stays(tmp_path: Path) -> None:
    name = shared_name(tmp_path / "toy")
    assert name.startswith("toy-")
    assert shared_name(tmp_path / "toy") == name
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["studies"]
