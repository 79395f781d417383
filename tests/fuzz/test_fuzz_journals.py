"""Journals: those of measurements, and the one that holds Optuna's trials; each line is JSON and may be damaged."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import as_json, bytes_like, changed_values, fuzz, json_like, refused

from hwnas.latency import session, unseen_session
from hwnas.search.journal import open_journal
from hwnas.search.problem import Objective
from hwnas.search.study import failed, open_study, record_failure, record_trial, recorded
from hwnas.spaces import make_space
from hwprof.journal import Journal

HEADER = {"space": {"name": "s"}, "target": {"batch": 1}}
RESULT = {
    "name": "0-1", "ratio": 1.5, "standard_error": 0.01, "spread": 0.02, "ratios": [1.5, 1.6, 1.4], "wall_ms": 2.0,
    "interrupted": 0.0, "refused": None, "nodes": [["b0:conv", 0.5], ["b1:add", 1.0]],
}  # fmt: skip
GROUP = {
    "phase": "anchors", "device": "local", "results": [RESULT, {**RESULT, "name": "0-2", "refused": "noisy"}],
    "anchor_ms": [1.0, 1.1, 1.0], "anchors": {"anchor 0-0": [1.0, 1.0, 1.0]}, "drift": 0.01, "seconds": 3.5,
    "stolen_seconds": 0.0, "involuntary_switches": 3, "state": {"governor": "performance"},
}  # fmt: skip
MEASURED = {
    "name": "0-1", "ms": 1.5, "low_ms": 1.4, "high_ms": 1.6, "wall_ms": 2.0, "anchor_drift": 0.0, "refused": None,
}  # fmt: skip
MEASUREMENTS = {"phase": unseen_session.FIRST, "seconds": 2.5, "measured": [MEASURED]}
PROFILES = {"phase": unseen_session.NODES, "seconds": 2.5, "profiled": {"0-1": {"0": 1.5}, "0-2": "refused"}}
CHECKS = {
    "group": (session.check, GROUP),
    "measurements": (unseen_session.check, MEASUREMENTS),
    "profiles": (unseen_session.check, PROFILES),
}


def lines(*records: Any) -> bytes:
    return "".join(f"{as_json(record)}\n" for record in records).encode()


def read(path: Path, data: bytes, check: Any) -> list[Any]:
    path.write_bytes(data)
    found: list[Any] = []

    def open_it() -> None:
        with contextlib.closing(Journal(path, HEADER, check)) as journal:
            found.extend(journal.records)

    refused(open_it, path.parent)
    return found


@pytest.mark.parametrize("kind", CHECKS)
def test_good_journals_are_read(kind: str, tmp_path: Path) -> None:
    check, record = CHECKS[kind]
    assert read(tmp_path / "j", lines(HEADER, record, record), check) == [record, record]
    assert read(tmp_path / "j", lines(HEADER, record, {**record, "phase": 3}), check) == []


def test_older_journals_without_devices_are_read(tmp_path: Path) -> None:
    older = {key: value for key, value in GROUP.items() if key != "device"}
    assert read(tmp_path / "j", lines(HEADER, older), session.check) == [older]
    assert read(tmp_path / "j", lines(HEADER, {**older, "device": 3}), session.check) == []


@fuzz
@given(data=bytes_like(lines(HEADER, GROUP)))
def test_any_bytes(data: bytes, tmp_path: Path) -> None:
    read(tmp_path / "j", data, session.check)


@pytest.mark.parametrize("kind", CHECKS)
@fuzz
@given(data=st.data())
def test_a_record(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    check, record = CHECKS[kind]
    for one in read(tmp_path / "j", lines(HEADER, data.draw(changed_values(record))), check):
        for result in one.get("results", ()):
            assert 0 <= result["ratio"] < float("inf")
        for result in one.get("measured", ()):
            assert isinstance(result["ms"], int | float)
        for found in one.get("profiled", {}).values():
            assert isinstance(found, str) or all(position.isdecimal() for position in found)


@fuzz
@given(header=json_like(json.dumps(HEADER)))
def test_a_header(header: str, tmp_path: Path) -> None:
    read(tmp_path / "j", header.encode(errors="replace") + b"\n" + lines(GROUP), session.check)


SPACE = make_space("nasbench201", {"channels": 2, "cells": 1, "resolution": 8, "in_channels": 1, "num_classes": 10})
OBJECTIVES = (Objective("accuracy", "%", "maximize"), Objective("latency", "ms", "minimize", limit=2.0))


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The lines of a journal with two trials."""
    path = tmp_path_factory.mktemp("trials") / "journal.log"
    study = open_study(path, "train", OBJECTIVES)
    record_trial(study, SPACE, (0, 0, 0, 0, 0, 1), [55.0, 1.5], {"curve": [50.0, 55.0]})
    record_failure(study, SPACE, (0, 0, 0, 0, 0, 2), "diverged")
    return [json.loads(line) for line in path.read_text().splitlines()]


def look(path: Path) -> None:
    study = open_study(path, "train", OBJECTIVES)
    recorded(study)
    failed(study)


def test_a_good_journal_of_trials_is_read(trials: list[Any], tmp_path: Path) -> None:
    (tmp_path / "journal.log").write_bytes(lines(*trials))
    look(tmp_path / "journal.log")
    assert len(open_study(tmp_path / "journal.log", "train", OBJECTIVES).trials) == 2


@fuzz
@given(data=st.data())
def test_a_journal_of_trials(data: st.DataObject, trials: list[Any], tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    number = data.draw(st.integers(0, len(trials) - 1))
    changed = [*trials[:number], data.draw(changed_values(trials[number])), *trials[number + 1 :]]
    (tmp_path / "journal.log").write_bytes(lines(*changed))
    refused(lambda: look(tmp_path / "journal.log"), tmp_path)


@fuzz
@given(data=st.data())
def test_any_bytes_of_a_journal_of_trials(data: st.DataObject, trials: list[Any], tmp_path: Path) -> None:
    (tmp_path / "journal.log").write_bytes(data.draw(bytes_like(lines(*trials))))
    refused(lambda: open_journal(tmp_path / "journal.log"), tmp_path)
    refused(lambda: look(tmp_path / "journal.log"), tmp_path)
