"""A journal whose writers are killed: their locks and half lines cost nobody anything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hwnas.search import journal as module
from hwnas.search.journal import _Backend, _Lock, open_journal
from hwnas.search.processes import this_process

DEAD = f"{this_process().rpartition(':')[0]}:{2**22 + 1}"  # Linux gives no number so high


@pytest.fixture
def path(tmp_path: Path) -> Path:
    open_journal(tmp_path / "journal.log")
    return tmp_path / "journal.log"


def test_a_half_line_of_a_killed_writer_is_cut_by_the_next_one(path: Path) -> None:
    one, other = _Backend(path), _Backend(path)
    one.append_logs([{"op": 1}])
    with path.open("ab") as file:
        file.write(b'{"op": 2, "of a kil')
    assert list(other.read_logs(0)) == [{"op": 1}]
    other.append_logs([{"op": 3}, {"op": 4}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"op": 1}, {"op": 3}, {"op": 4}]
    assert list(one.read_logs(0)) == [{"op": 1}, {"op": 3}, {"op": 4}]


def test_the_lock_of_a_dead_process_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE_SECONDS", 1e9)
    lock = path.with_name("journal.log.lock")
    lock.write_text(DEAD)
    _Backend(path).append_logs([{"op": 1}])
    assert not lock.exists()


def test_a_lock_of_another_machine_is_waited_for_and_then_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.3)
    lock = path.with_name("journal.log.lock")
    lock.write_text("elsewhere/1:7")
    _Backend(path).append_logs([{"op": 1}])
    assert not lock.exists()


def test_a_live_holder_is_waited_for(path: Path) -> None:
    first, second = _Lock(path), _Lock(path)
    first.acquire()
    held = path.with_name("journal.log.lock").read_text()
    assert held == this_process()
    first.release()
    second.acquire()
    second.release()
    second.release()  # as one whose lock was taken from it
    assert not path.with_name("journal.log.lock").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file systems to stand for")
def test_a_file_system_without_links_has_locks_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    lock = _Lock(path)
    lock.acquire()
    assert path.with_name("journal.log.lock").read_text() == this_process()
    lock.release()
    _Backend(path).append_logs([{"op": 1}])
    assert list(_Backend(path).read_logs(0)) == [{"op": 1}]


def test_what_waiting_processes_left_when_they_died_is_swept(path: Path) -> None:
    left, live = path.with_name("journal.log.lock.0a"), path.with_name("journal.log.lock.0b")
    left.write_text(DEAD)
    live.write_text(this_process())
    open_journal(path)
    assert (left.exists(), live.exists()) == (False, True)
