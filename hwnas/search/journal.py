"""Optuna's journal file, for processes that are killed while they hold its lock or write a line.

Optuna's own lock is a file that stays when its process dies; everybody then waits for half a minute before it is
broken. Here the lock says who holds it, and a holder that is dead, on the machine that asks, holds nothing. And a line
that a killed process left half written is cut before the next is appended: glued together, both would be unreadable.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from hwnas.errors import RunError
from hwnas.search.processes import is_dead, this_process

_GRACE_SECONDS = 30.0
# What the fields of a line are, which Optuna takes as it finds them.
_ATTRIBUTES = ("user_attr", "system_attr", "user_attrs", "system_attrs", "params", "distributions")
_KINDS: dict[str, type] = {**dict.fromkeys(_ATTRIBUTES, dict), "study_name": str, "study_id": int, "trial_id": int}


def open_journal(path: Path) -> JournalStorage:
    """The storage of a journal file, made if it is not there.

    Raises RunError if it is damaged beyond its last line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        backend = _Backend(path)
        backend.drop_torn_tail()
        return JournalStorage(backend)
    except OSError:
        raise
    except Exception as error:  # Optuna replays the lines, and looks at nothing before it uses it
        raise RunError(
            f"{path} is not an intact Optuna journal: {type(error).__name__}: {error}; restore it or move it away"
        ) from error


class _Backend(JournalFileBackend):
    """A journal file whose last line may be half a line, since its writer was killed."""

    def __init__(self, path: Path) -> None:
        self._path, self._own = path, _Lock(path)
        super().__init__(str(path), lock_obj=self._own)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The lines from that number on. Raises ValueError on one that is none of Optuna's."""
        for log in super().read_logs(log_number_from):
            for name, kind in _KINDS.items() if isinstance(log, dict) else ():
                if not isinstance(log.get(name, kind()), kind):
                    raise ValueError(f"a line has the {name} {str(log[name])[:100]!r}")
            yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._locked(), self._path.open("ab") as file:
            end = file.tell()
            if end and _last_byte(self._path) != b"\n":
                file.truncate(_cut(self._path))
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def drop_torn_tail(self) -> None:
        """Cut what follows the last complete line. Raises ValueError if the file does not end like a journal."""
        self._own.sweep()
        if not self._path.exists():
            return
        with self._locked():
            length = _cut(self._path)
            if length < self._path.stat().st_size:
                os.truncate(self._path, length)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._own.acquire()
        try:
            yield
        finally:
            self._own.release()


class _Lock(JournalFileOpenLock):
    """A lock file with its holder's name inside; that of a dead process of this machine is removed.

    One of another machine is removed after half a minute, as Optuna does it.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._path = journal.with_name(journal.name + ".lock")

    def acquire(self) -> bool:
        """Wait for the lock; True."""
        own = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
        own.write_text(this_process(), encoding="utf-8")
        try:
            held, since, pause = b"", time.monotonic(), 0.001
            while not self._take(own):
                if (holder := self._holder()) != held:
                    held, since = holder, time.monotonic()
                if is_dead(holder.decode(errors="replace").partition(" ")[0]):
                    self._drop_dead()
                elif time.monotonic() - since > _GRACE_SECONDS:
                    self.release()
                time.sleep(pause)
                pause = min(2 * pause, 0.1)
        finally:
            own.unlink(missing_ok=True)
        return True

    def release(self) -> None:
        """Let the next one have it; one that was slow may find that its lock was taken from it."""
        self._path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what processes left that died while they waited."""
        for own in self._path.parent.glob(f"{self._path.name}.*"):
            with contextlib.suppress(OSError, ValueError):
                if is_dead(own.read_text(encoding="utf-8")):
                    own.unlink()

    def _take(self, own: Path) -> bool:
        """Let the file appear with its content, in one step, by a link, which also NFS does."""
        try:
            os.link(own, self._path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with self._path.open("x", encoding="utf-8") as file:
                    file.write(this_process())
            except FileExistsError:
                return False
        return True

    def _holder(self) -> bytes:
        """Who holds it, since when."""
        try:
            return self._path.read_bytes() + b" %d" % self._path.stat().st_mtime_ns
        except OSError:
            return b""

    def _drop_dead(self) -> None:
        """Remove the lock of a dead process. Only processes of its machine do, one at a time."""
        if sys.platform == "win32":
            return
        import fcntl

        with contextlib.suppress(OSError), self._path.with_name(self._path.name + "-break").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if is_dead(self._path.read_text(encoding="utf-8")):
                self._path.unlink()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _cut(path: Path) -> int:
    """The length of a journal's complete lines. Raises ValueError on a file that does not end like a journal."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    tail = content[complete:].rstrip(b"\0")  # zeros are what some file systems leave after a power cut
    if complete:
        json.loads(content[content.rfind(b"\n", 0, complete - 1) + 1 : complete])  # Optuna would skip it as well
    if tail and not tail.startswith(b"{"):
        raise ValueError("its last line is none of a journal")
    return complete
