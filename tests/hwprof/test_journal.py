from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprof import files
from hwprof.errors import TableError
from hwprof.files import write_atomic
from hwprof.journal import Journal

HEADER = {"target": {"threads": 1, "batch": 1}, "space": ["a", 3]}
RECORDS = [{"phase": "nodes", "results": [1.5, None]}, {"phase": "whole"}, {"phase": "whole", "x": "äß"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of three records."""
    path = tmp_path / "folder" / "table.journal"
    journal = Journal(path, HEADER)
    for record in RECORDS:
        journal.append(record)
    return path


def test_a_journal_goes_on_where_it_ended(path: Path) -> None:
    journal = Journal(path, HEADER)
    assert journal.records == RECORDS
    journal.append({"n": 4})
    assert Journal(path, HEADER).records == [*RECORDS, {"n": 4}]
    journal.delete()
    journal.delete()
    assert not path.exists()
    assert Journal(path, HEADER).records == []


def test_a_header_is_compared_as_the_json_that_it_becomes(path: Path) -> None:
    assert Journal(path, {"target": {"batch": 1, "threads": 1}, "space": ("a", 3)}).records == RECORDS


def test_every_torn_tail_is_dropped(path: Path) -> None:
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        journal = Journal(path, HEADER)
        kept = max(0, sum(end <= size for end in ends) - 1)
        assert journal.records == RECORDS[:kept]
        journal.append({"after": size})
        assert Journal(path, HEADER).records == [*RECORDS[:kept], {"after": size}]


@pytest.mark.parametrize("tail", [b"\0" * 4096, b'{"phase": "nod', b"\xff\xfe"])
def test_what_a_power_cut_leaves_is_dropped(path: Path, tail: bytes) -> None:
    path.write_bytes(path.read_bytes() + tail)
    assert Journal(path, HEADER).records == RECORDS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda data: data.replace(b'"whole"', b'"whole', 1), "is damaged", id="middle"),
        pytest.param(lambda data: data.replace(b"}\n{", b"}\n\n{", 1), "is damaged", id="empty line"),
        pytest.param(lambda data: data.replace(b'"whole"', b'"\xff"', 1), "is damaged", id="no text"),
        pytest.param(lambda data: data[5:], "is damaged", id="begin lost"),
        pytest.param(lambda data: b"3\n" + data, "is not a journal", id="a number first"),
        pytest.param(lambda data: b"[]\n" + data, "is not a journal", id="a list first"),
        pytest.param(lambda data: data + b"null\n", "is not a journal", id="a record that is none"),
        pytest.param(lambda data: data.partition(b"\n")[2], "something else", id="header lost"),
    ],
)
def test_damage_is_told_and_nothing_is_overwritten(path: Path, change, message: str) -> None:
    damaged = change(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(TableError, match=f"{message}.*delete it to measure anew"):
        Journal(path, HEADER)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("header", "changed"),
    [
        ({**HEADER, "target": {"threads": 2, "batch": 1}}, r"\(target.threads changed: target.threads was 1, is 2\)"),
        ({**HEADER, "space": ["a", 4]}, r"\(space changed: space was \['a', 3\], is \['a', 4\]\)"),
        ({**HEADER, "target": None}, r"\(target changed: "),
        ({**HEADER, "seed": 1}, r"\(seed changed: seed was None, is 1\)"),
        ({}, r"\(space, target changed: "),
    ],
)
def test_another_header_is_refused_and_what_changed_is_named(path: Path, header: dict, changed: str) -> None:
    with pytest.raises(TableError, match=changed):
        Journal(path, header)


@given(st.binary(max_size=60), st.integers(0, 200))
def test_no_file_raises_anything_but_a_table_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "table.journal"
    Journal(path, HEADER).append(RECORDS[0])
    data = path.read_bytes()
    path.write_bytes(data[:at] + junk + data[at + len(junk) :])
    try:
        Journal(path, HEADER).append(RECORDS[1])
    except TableError:
        return
    assert Journal(path, HEADER).records[-1] == RECORDS[1]


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_journal_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, before = Journal(path, HEADER), path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            journal.append({"lost": 1})
    assert path.read_bytes() == before
    assert journal.records == RECORDS
    journal.append({"kept": 1})
    assert Journal(path, HEADER).records == [*RECORDS, {"kept": 1}]


def test_a_full_disk_at_the_header_leaves_nothing_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            Journal(tmp_path / "table.journal", HEADER)
    assert Journal(tmp_path / "table.journal", HEADER).records == []


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "table.journal").mkdir()
    with pytest.raises(OSError, match=r"table\.journal"):
        Journal(tmp_path / "table.journal", HEADER)


def test_the_systems_own_limit_of_file_size_leaves_the_journal_valid(path: Path) -> None:
    """A real failing write, of which the system has written a part."""
    resource = pytest.importorskip("resource", reason="file size limits are of POSIX systems")
    assert resource.RLIMIT_FSIZE >= 0
    script = (
        "import json, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from hwprof.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "path, header = Path(sys.argv[1]), json.loads(sys.argv[2])\n"
        "limit = path.stat().st_size + 100\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "journal = Journal(path, header)\n"
        "journal.append({'small': 1})\n"
        "try:\n"
        "    journal.append({'large': 'x' * 100_000})\n"
        "except OSError as error:\n"
        "    sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path), json.dumps(HEADER)], check=False)
    assert done.returncode == errno.EFBIG
    assert Journal(path, HEADER).records == [*RECORDS, {"small": 1}]


def test_a_kill_while_appending_loses_at_most_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "table.journal"
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hwprof.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), {})\n"
        "for n in range(10**9):\n"
        "    journal.append({'n': n, 'padding': 'x' * 5000})\n"
        "    print(n, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 5:
            pass
        process.send_signal(signal.SIGKILL)
        durable = [int(line) for line in process.stdout]
    found = [record["n"] for record in Journal(path, {}).records]
    assert found == list(range(len(found)))
    assert len(found) > max(durable, default=5)


def test_an_atomic_write_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "old ä")
    assert path.read_text(encoding="utf-8") == "old ä"
    write_atomic(path, b"\0new")
    assert path.read_bytes() == b"\0new"
    (tmp_path / "usual").write_text("")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("broken", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_write_that_fails_midway_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException
) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(files.os if broken == "fsync" else files.Path, broken, fail)
        with pytest.raises(type(error)):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]
