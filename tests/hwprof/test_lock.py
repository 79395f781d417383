from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agents import SOURCES

from hwprof import lock as lock_module
from hwprof.errors import BusyError
from hwprof.journal import Journal
from hwprof.lock import Lock, machine_lock, table_lock


@contextmanager
def other_process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code` and then waits for its end; it has said "ready"."""
    script = (
        f"import sys\nfrom pathlib import Path\nfrom hwprof.journal import Journal\nfrom hwprof.lock import *\n{code}"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with subprocess.Popen(
        [sys.executable, "-c", f"{script}\nprint('ready', flush=True)\nsys.stdin.read()", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_the_second_profile_of_a_table_is_refused_with_who_holds_it_and_since_when(tmp_path: Path) -> None:
    path = tmp_path / "table.journal"
    with other_process("journal = Journal(Path(sys.argv[1]), {})\njournal.append({'n': 1})", str(path)) as other:
        before = path.read_bytes()
        message = (
            rf"process {other.pid} on \S+ \(since 2\d\d\d-.*\) holds .*table\.lock; it is measuring the same table"
        )
        with pytest.raises(BusyError, match=message):
            Journal(path, {})
        Journal(tmp_path / "another.journal", {}).close()
        assert path.read_bytes() == before


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path, end: signal.Signals) -> None:
    path = tmp_path / "table.journal"
    with other_process("journal = Journal(Path(sys.argv[1]), {})\njournal.append({'n': 1})", str(path)) as other:
        other.send_signal(end)
        other.wait()
        assert (tmp_path / "table.lock").exists()
        assert Journal(path, {}).records == [{"n": 1}]


@pytest.mark.parametrize("text", [b"", b"process 1 on elsewhere (since 1970)", b"\0\xff" * 5000])
def test_a_lock_file_that_nobody_holds_locks_nothing(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "table.lock").write_bytes(text)
    journal = Journal(tmp_path / "table.journal", {})
    assert (tmp_path / "table.lock").read_text().startswith(f"process {os.getpid()} on ")
    journal.delete()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["close", "delete", "garbage"])
def test_an_ended_journal_leaves_no_lock(tmp_path: Path, end: str) -> None:
    journal = Journal(tmp_path / "table.journal", {})
    if end != "garbage":
        getattr(journal, end)()
        getattr(journal, end)()
    del journal
    gc.collect()
    assert not (tmp_path / "table.lock").exists()
    with other_process("journal = Journal(Path(sys.argv[1]), {})", str(tmp_path / "table.journal")):
        pass


def test_a_journal_that_cannot_be_opened_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "table.journal"
    path.write_text("junk\n")
    with pytest.raises(ValueError, match="is damaged"):
        Journal(path, {})
    assert not (tmp_path / "table.lock").exists()


def test_another_thread_is_another_profile_but_what_a_thread_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    found: list[object] = []

    def attempt() -> None:
        try:
            found.append(table_lock(path))
        except BusyError as error:
            found.append(error)

    def from_a_thread() -> object:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        return found[-1]

    left_behind = table_lock(path)
    assert isinstance(from_a_thread(), BusyError)
    again = table_lock(path)
    left_behind.release()
    assert isinstance(from_a_thread(), BusyError), "an old lock's release must not free the one that took it over"
    again.release()
    assert isinstance(from_a_thread(), Lock)
    table_lock(path).release()  # that thread has ended and kept its lock


def test_a_forked_child_does_not_free_its_parents_lock(tmp_path: Path) -> None:
    fork = (
        "import os\nlock = table_lock(Path(sys.argv[1]))\n"
        "child = os.fork()\nif child == 0:\n    lock.release()\n    os._exit(0)\nos.waitpid(child, 0)"
    )
    if not hasattr(os, "fork"):
        pytest.skip("only POSIX systems fork")
    with other_process(fork, str(tmp_path / "table.json")), pytest.raises(BusyError):
        table_lock(tmp_path / "table.json")


def test_a_full_disk_makes_the_lock_nameless_but_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        lock = table_lock(tmp_path / "table.json")
    script = "try:\n    table_lock(Path(sys.argv[1]))\nexcept Exception as error:\n    print(error)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom pathlib import Path\nfrom hwprof.lock import *\n{script}",
         str(tmp_path / "table.json")],
        env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("another process holds")
    lock.release()


@pytest.mark.skipif(sys.platform == "win32", reason="flock is of POSIX systems")
def test_a_file_system_without_locks_is_worked_on_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock_module.fcntl, "flock", unsupported)
    table_lock(tmp_path / "table.json").release()


def test_many_processes_have_it_one_after_the_other(tmp_path: Path) -> None:
    """Each adds to a number that all read and write back: a lock that two hold at once loses additions."""
    number = tmp_path / "number"
    number.write_text("0")
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom hwprof.lock import Lock\n"
        "path, number = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "for _ in range(15):\n"
        "    with Lock(path, 'wait', wait_seconds=60):\n"
        "        value = int(number.read_text())\n"
        "        time.sleep(0.001)\n"
        "        number.write_text(str(value + 1))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "shared.lock"), str(number)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    processes = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert int(number.read_text()) == 60


def test_a_file_removed_between_opening_and_locking_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder before removes its file as it goes: a lock on that file would keep nobody out."""
    path, real, calls = tmp_path / "table.lock", lock_module._lock, []

    def lock(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        return real(descriptor)

    monkeypatch.setattr(lock_module, "_lock", lock)
    with Lock(path, "wait"):
        assert path.exists()
        assert len(calls) == 2


@pytest.fixture
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of temporary files of this test alone: its machine is free."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_a_measurement_waits_for_the_machine_and_says_for_whom(
    own_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "TELL_SECONDS", 0.1)
    waited: list[str] = []
    with other_process("lock = machine_lock()") as other:
        threading.Timer(0.5, other.kill).start()
        with machine_lock(waited.append):
            assert other.wait(0.1) == -signal.SIGKILL
    assert waited
    assert set(waited) == {waited[0]}
    assert waited[0].startswith(f"process {other.pid} on ")


def test_a_machine_that_stays_busy_is_told(own_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "MACHINE_SECONDS", 0.2)
    with other_process("lock = machine_lock()") as other:
        begin = time.monotonic()
        with pytest.raises(BusyError, match=rf"process {other.pid} on .* it has been measuring for 0 s: end it if"):
            machine_lock()
        assert time.monotonic() - begin >= 0.2


@pytest.mark.parametrize("kind", ["link", "broken link", "folder", "pipe", "name of another file"])
def test_what_is_no_lock_file_is_not_written_to_and_another_lock_is_taken(own_machine: Path, kind: str) -> None:
    """Anybody can put anything into the folder of temporary files."""
    precious, place = own_machine / "precious", own_machine / "hwprof.lock"
    if kind != "broken link":
        precious.write_text("precious")
    if kind.endswith("link"):
        place.symlink_to(precious)
    elif kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.hardlink_to(precious)
    with machine_lock():
        (mine,) = own_machine.glob("hwprof-*.lock")
        assert mine.read_text().startswith(f"process {os.getpid()} on ")
    assert not precious.exists() if kind == "broken link" else precious.read_text() == "precious"


def test_the_lock_of_a_machine_stays_for_the_next_user_and_names_nobody(own_machine: Path) -> None:
    lock_file = own_machine / "hwprof.lock"
    with machine_lock(who="ada@laptop"):
        assert re.fullmatch(r"process \d+ on \S+ for ada@laptop \(since .*\)", lock_file.read_text())
    assert lock_file.read_bytes() == b""
    assert lock_file.stat().st_mode & 0o777 == 0o666
    with machine_lock():
        pass


def test_a_holder_cannot_write_to_the_terminal(own_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "MACHINE_SECONDS", 0.1)
    with other_process("lock = machine_lock(who='\\x1b[2Jnobody\\n')"), pytest.raises(BusyError) as refused:
        machine_lock()
    assert str(refused.value).partition(" holds ")[0].isprintable()


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root can become two other users")
@pytest.mark.parametrize("first", [1234, 0])
def test_users_of_one_machine_take_turns(first: int) -> None:
    """In a folder such as /tmp, where the kernel guards the files of one user from another."""
    become = "import os, sys\nfrom hwprof import lock\nuser = int(sys.argv[1])\n"
    become += "os.setgroups([])\nos.setgid(user)\nos.setuid(user)\n"
    hold = "with lock.machine_lock():\n    print('ready', flush=True)\n    sys.stdin.read()"
    knock = "lock.MACHINE_SECONDS = 0.1\ntry:\n    lock.machine_lock()\nexcept Exception as error:\n    print(error)"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o1777)
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), "TMPDIR": folder}

        def start(code: str, user: int) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", become + code, str(user)]
            return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        with start(hold, first) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            for user in (1235, 1234, 0):
                said, _ = start(knock, user).communicate()
                assert said.startswith(f"process {holder.pid} on "), user
            holder.kill()
        for user in (1235, 1234, 0):
            assert start(knock, user).communicate() == ("", None)
        assert [path.name for path in Path(folder).iterdir()] == ["hwprof.lock"]


def test_a_machine_without_a_place_for_the_lock_is_measured_all_the_same(
    own_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(own_machine / "file"))
    (own_machine / "file").write_text("not a folder")
    with machine_lock():
        pass
