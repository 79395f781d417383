"""What devices that are another machine have in common: files brought to a folder of our own there.

    FOLDER/                          of one user, closed to others; see `RemoteFiles`
      keep/<digest>/<name>           what is worth keeping between runs: the agent, a runtime for a phone
      run-<random>/<digest>/<name>   model files of one host, gone when it is done with the device

Every file lies under a digest of its content, so a file that is there is the right one and is not brought again. The
companions of a model file (`hwprof.files.companions`) share its digest and keep its stem.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
from pathlib import Path
from typing import Protocol

from hwprof.errors import DeviceError, MeasurementError
from hwprof.files import companions

# Model files of more than this in total are thinned out between two jobs, down to half of it.
MAX_RUN_BYTES = 256 * 2**20
# What hosts that were killed left behind, and agents of old versions, go after so many days without use.
RUN_DAYS = 1
KEEP_DAYS = 7
PARTIAL = ".partial"


class Connection(Protocol):
    """A way to the device's shell, for `RemoteFiles`."""

    def run(self, command: str) -> str:
        """Standard output of a command of the POSIX shell. Raises DeviceError, also if the command fails."""

    def push(self, path: Path, there: str) -> None:
        """Bring a file to a path there, whole or not at all; its folder is made if missing. Raises DeviceError."""


class RemoteFiles:
    """Our files on the device. `folder` is a word of the POSIX shell (quoted where it must be), e.g. '"$HOME"/.hwprof'.

    Call `open` on every new connection before anything else.
    """

    def __init__(self, connection: Connection, folder: str) -> None:
        self._connection, self._folder = connection, folder
        self._run = f"run-{secrets.token_hex(8)}"
        self._root = ""
        # "run-x/digest" or "keep/digest" -> bytes, in the order of their last use; and digests of files seen here
        self._there: dict[str, int] = {}
        self._digests: dict[tuple[str, int, int], str] = {}

    def open(self) -> None:
        """Make the folder, learn what lies there already, remove what others forgot. Raises DeviceError."""
        lines = self._connection.run(
            f"umask 077; d={self._folder}; "
            'if [ -L "$d" ]; then echo "$d is a symbolic link" >&2; exit 1; fi; '
            f'mkdir -p "$d" && chmod 700 "$d" && cd "$d" && mkdir -p keep {self._run} && '
            f"{{ {_forget('.', 'run-*', RUN_DAYS)}; {_forget('keep', '*', KEEP_DAYS)}; "
            f"echo; echo {self._run}; pwd; ls -d keep/*/* {self._run}/*/* 2>/dev/null; :; }}"
        ).splitlines()
        # A login script may have printed something before.
        try:
            begin = len(lines) - lines[::-1].index(self._run)
            self._root = lines[begin]
        except (ValueError, IndexError):
            raise DeviceError(f"the device's shell answered {' '.join(lines)[:200]!r}, not its folder") from None
        if not self._root.startswith("/") or not self._root.isprintable():
            raise DeviceError(f"the device's shell says that its folder is {self._root[:200]!r}")
        found = {line.rpartition("/")[0] for line in lines[begin + 1 :]}
        whole = found - {line.rpartition("/")[0] for line in lines[begin + 1 :] if line.endswith(PARTIAL)}
        self._there = {entry: size for entry, size in self._there.items() if entry in whole}
        self._there.update(dict.fromkeys((entry for entry in sorted(whole) if entry.startswith("keep/")), 0))

    def keep(self, path: Path) -> str:
        """Bring a file that later runs want too; the path it has there. Raises DeviceError."""
        return self._bring(path, "keep")

    def put(self, path: Path) -> str:
        """Bring a model file and its companions; the path it has there. Raises DeviceError."""
        return self._bring(path, self._run)

    def tidy(self) -> None:
        """Remove the model files used longest ago if there are too many. Call between jobs. Raises DeviceError."""
        models = [entry for entry in self._there if entry.startswith("run-")]
        total = sum(self._there[entry] for entry in models)
        if total <= MAX_RUN_BYTES:
            return
        removed = []
        for entry in models:
            if total <= MAX_RUN_BYTES // 2:
                break
            total -= self._there.pop(entry)
            removed.append(shlex.quote(f"{self._root}/{entry}"))
        self._connection.run(f"rm -rf {' '.join(removed)}")

    def remove(self) -> None:
        """Remove this host's model files. Raises DeviceError."""
        if self._root:
            self._there = {entry: size for entry, size in self._there.items() if entry.startswith("keep/")}
            self._connection.run(f"rm -rf {shlex.quote(f'{self._root}/{self._run}')}")

    def _bring(self, path: Path, place: str) -> str:
        files = (path, *companions(path))
        try:
            entry, size_bytes = f"{place}/{self._digest(files)}", sum(file.stat().st_size for file in files)
        except OSError as error:
            raise MeasurementError(f"cannot load {path.name}: {error}") from error
        if entry not in self._there:
            for file in files:
                self._connection.push(file, f"{self._root}/{entry}/{_safe(file.name)}")
        self._there.pop(entry, None)
        self._there[entry] = size_bytes
        return f"{self._root}/{entry}/{_safe(path.name)}"

    def _digest(self, files: tuple[Path, ...]) -> str:
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{_safe(file.name)}\n{self._content(file)}\n".encode())
        return digest.hexdigest()[:32]

    def _content(self, file: Path) -> str:
        status = file.stat()
        key = str(file.absolute()), status.st_mtime_ns, status.st_size
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(file.read_bytes()).hexdigest()
        return self._digests[key]


def receive(partial: str, there: str, size_bytes: int) -> str:
    """A shell command that makes the file `there` of the one at `partial`, if that has the right size.

    A connection that breaks looks to the receiving end like the end of the file.
    """
    partial, there = shlex.quote(partial), shlex.quote(there)
    return (
        f"if [ $(wc -c < {partial}) -eq {size_bytes} ]; then mv -f {partial} {there}; "
        f"else rm -f {partial}; echo incomplete >&2; exit 1; fi"
    )


def partial_path(there: str) -> str:
    """Where to put a file until it is whole; two hosts that bring the same one do not write into each other's."""
    return f"{there}.{secrets.token_hex(4)}{PARTIAL}"


def agent_command(python: str, archive: str) -> str:
    """A shell command that becomes the agent of an archive that `RemoteFiles.keep` brought; `python` is a word."""
    # An idle thread that spins steals the core of the one being timed. The touch says that the archive is in use.
    folder, archive = shlex.quote(archive.rpartition("/")[0]), shlex.quote(archive)
    return f"touch -c {folder}; exec env OMP_WAIT_POLICY=PASSIVE {python} {archive}"


def shell_line(command: str) -> str:
    """The command for a device whose login shell may be any: POSIX shell, with messages in English."""
    return f"env LC_ALL=C sh -c {shlex.quote(command)}"


def _forget(folder: str, names: str, days: int) -> str:
    return f"find {folder} -maxdepth 1 -mindepth 1 -name '{names}' -mtime +{days} -exec rm -rf {{}} +"


def _safe(name: str) -> str:
    """A file name that means nothing to any shell; the same stems stay the same."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
