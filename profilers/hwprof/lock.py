"""A lock between processes: one profile of a table at a time, and one measurement of a machine at a time.

The system holds it for an open file, so it ends with its process, however that ends: a file that a kill left behind
locks nothing. What the file says (who, since when) is only for the message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from hwprof.errors import BusyError

# A waiting process looks this often (a look costs microseconds, and others are measuring), and says so this often.
POLL_SECONDS = 0.05
TELL_SECONDS = 1.0
# Longer than any group of measurements should take: then its process hangs, and somebody must look. To build engines
# for twenty models is a part of it.
MACHINE_SECONDS = 1800.0
ANDROID_FOLDER = "/data/local/tmp"
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# Errors of a system call that mean that another holds the lock, not that there are no locks on this file system.
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}


class Lock:
    """Held from construction until `release`, until it is garbage, or until the process ends.

    Waits up to `wait_seconds` for another holder and tells `waiting` who that is, once a second. Raises BusyError with
    the holder and `advice` if it still holds it then, OSError if the file cannot be made. `who` it is held for becomes
    part of the holder's name. A `shared` lock is one of all users of the machine, and its file stays. A lock that the
    same thread left behind (an error that somebody kept keeps all that it passed) is taken over: its work has ended.
    """

    def __init__(
        self,
        path: Path,
        advice: str,
        *,
        wait_seconds: float = 0.0,
        waiting: Callable[[str], None] = lambda holder: None,
        who: str = "",
        shared: bool = False,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.current_thread()
        mine = _locks.get(path.absolute())
        if mine is not None and (mine._thread is self._thread or not mine._thread.is_alive()):
            mine.release()
        begin = told = time.monotonic()
        while (descriptor := _take(path, who, shared)) is None:
            holder, now = _holder(path), time.monotonic()
            if now - begin >= wait_seconds:
                raise BusyError(f"{holder} holds {path}; {advice}")
            if now - told >= TELL_SECONDS:
                told = now
                waiting(holder)
            time.sleep(POLL_SECONDS)
        self._release = weakref.finalize(self, _let_go, descriptor, path, os.getpid(), shared)
        _locks[path.absolute()] = self

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let the next one have it; does nothing the second time."""
        self._release()


# The locks of this process, to find those that were left behind.
_locks: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()


def table_lock(path: Path) -> Lock:
    """The lock of the table or journal at `path`. Raises BusyError while another process holds it."""
    return Lock(
        path.with_suffix(".lock"), "it is measuring the same table: wait until it ends, or end it, then run this again"
    )


def machine_lock(
    waiting: Callable[[str], None] = lambda holder: None, who: str = ""
) -> contextlib.AbstractContextManager[object]:
    """The lock of this machine, so that measurements of two profiles do not disturb each other; waits for its turn.

    It is one for all users; where another's file is in its place, one for this user, and where the system's folder of
    temporary files cannot be written there is none. Raises BusyError if another measurement goes on for
    MACHINE_SECONDS.
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else "machine"
    # Android's folder is the only one that its shell can write, and temporary files have no place of their own there.
    folder = ANDROID_FOLDER if os.access(ANDROID_FOLDER, os.W_OK) else tempfile.gettempdir()
    for name, shared in (("hwprof.lock", True), (f"hwprof-{user}.lock", False)):
        with contextlib.suppress(OSError):
            return Lock(
                Path(folder) / name,
                f"it has been measuring for {MACHINE_SECONDS:.0f} s: end it if it hangs, then run this again",
                wait_seconds=MACHINE_SECONDS,
                waiting=waiting,
                who=who,
                shared=shared,
            )
    return contextlib.nullcontext()


def _take(path: Path, who: str, shared: bool) -> int | None:
    """A descriptor that holds the lock; None if another holds it."""
    descriptor = _open_shared(path) if shared else os.open(path, _FLAGS | os.O_CREAT, 0o644)
    try:
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        # The holder before may have removed the file after it was opened here: then others lock a new one.
        if not _is_at(descriptor, path):
            os.close(descriptor)
            return _take(path, who, shared)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, it is only nameless
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _myself(who).encode())
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    return descriptor


def _open_shared(path: Path) -> int:
    """The file opened, whoever made it; made for all users if it is missing.

    In a folder of all users anybody can put anything in its place: a link is not followed, and what is no plain file,
    or one that has another name elsewhere, is not written to. Raises OSError then.
    """
    problem = OSError()
    for _ in range(10):
        try:
            # Not in one call: the kernel refuses to open another user's file with O_CREAT (fs.protected_regular).
            return _require_plain(os.open(path, _FLAGS), path)
        except FileNotFoundError as error:
            problem = error
        except PermissionError as error:  # perhaps because it was made just now and is not yet everybody's
            problem = error
            time.sleep(0.01)
            continue
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o666)  # whatever the umask
            return descriptor
    raise problem


def _require_plain(descriptor: int, path: Path) -> int:
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a plain file of one name", str(path))


def _let_go(descriptor: int, path: Path, owner: int, shared: bool) -> None:
    # A forked child has a copy of the descriptor, but the lock is its parent's.
    if owner == os.getpid() and _is_at(descriptor, path):
        with contextlib.suppress(OSError):  # Windows removes no open file; an empty lock file is harmless
            # The others may not remove a shared one, and must not wait for the first to come back.
            os.ftruncate(descriptor, 0) if shared else path.unlink()
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _myself(who: str) -> str:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()}{f' for {who}' if who else ''} (since {now})"


def _holder(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()[:300]
        return "".join(filter(str.isprintable, text)) or "another process"
    except OSError:
        return "another process"


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        # Windows forbids reading a locked byte, so the locked one is behind the text.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # A file system without locks cannot keep two profiles apart, but one must work on it.
            return error.errno not in _HELD
        return True
