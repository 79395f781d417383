"""Machines reached over SSH. Uses the `ssh` program of this machine, with the keys and settings that it knows.

    ssh:pi@board                              the user pi on the machine board
    ssh:pi@board:2222?python=venv/bin/python  another port, and the Python there that has the runtime
    ssh:board                                 a name of ~/.ssh/config

Further options: `folder` for our files there, `key` and `config` for files of ssh's here. Host keys are always checked
and never accepted here, and nobody is asked for a password.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

from hwprof.archive import agent_archive
from hwprof.devices import require_options
from hwprof.devices.remote import RemoteFiles, agent_command
from hwprof.devices.ssh_connection import Login, SshConnection
from hwprof.errors import DeviceError, TargetError

FOLDER = '"${XDG_CACHE_HOME:-$HOME/.cache}/hwprof"'
# A name that begins with "-" would be an option, and ssh's settings may hand any of it to a shell (ProxyCommand).
_ADDRESS = re.compile(
    r"(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+@-]*@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)"
    r"(?::(?P<port>[0-9]{1,5}))?"
)


class SshDevice:
    """A machine that lets us in by a key, and a folder of our own on it."""

    patience_seconds = 600.0

    def __init__(self, address: str, options: Mapping[str, str] | None = None) -> None:
        options = options or {}
        require_options("ssh", options, ("python", "folder", "key", "config"))
        for name, value in options.items():
            if not value.isprintable() or not value or value.startswith("-"):
                raise TargetError(f"the option {name} of the device ssh:{address} cannot be {value!r}")
        self._address = address
        self._python = _word(options.get("python", "python3"))
        self._connection = SshConnection(_login(address, options))
        self._files = RemoteFiles(self._connection, _word(options["folder"]) if "folder" in options else FOLDER)
        self._connecting = threading.Lock()
        weakref.finalize(self, _end, self._files, self._connection, os.getpid())

    @staticmethod
    def found() -> list[str]:
        """None: the machines that somebody can log in to are not all there to be measured."""
        return []

    def start_agent(self) -> subprocess.Popen[str]:
        self._connect()
        if self._connection.run(f"command -v {self._python} >/dev/null || echo none").strip():
            raise DeviceError(
                f"{self._address} has no {self._python}; name the Python there that has the runtime: "
                f"ssh:{self._address}?python=venv/bin/python"
            )
        with tempfile.TemporaryDirectory(prefix="hwprof-") as folder:
            archive = self._files.keep(agent_archive(Path(folder)))
        return self._connection.start(agent_command(self._python, archive))

    def put(self, path: Path) -> str:
        self._connect()
        return self._files.put(path)

    def tidy(self) -> None:
        self._connect()
        self._files.tidy()

    def _connect(self) -> None:
        with self._connecting:
            if not self._connection.alive:
                self._connection.open()
                self._files.open()


def _login(address: str, options: Mapping[str, str]) -> Login:
    found = _ADDRESS.fullmatch(address)
    if not found or int(found["port"] or 1) not in range(1, 2**16):
        raise TargetError(f"an ssh device is USER@HOST, USER@HOST:PORT or a name of ~/.ssh/config, got {address!r}")
    arguments = []
    for name, letter in (("config", "-F"), ("key", "-i")):
        if name in options:
            file = Path(options[name]).expanduser().absolute()
            if not file.is_file():
                raise TargetError(f"the {name} of the device ssh:{address} is not a file: {file}")
            arguments += [letter, str(file)]
    if found["port"]:
        arguments += ["-p", found["port"]]
    return Login(address, tuple(arguments), (found["user"] or "") + found["host"].strip("[]"))


def _word(path: str) -> str:
    """A path of the machine as a word of its shell; "~/" is the home there."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _end(files: RemoteFiles, connection: SshConnection, owner: int) -> None:
    if owner == os.getpid():  # a forked child has copies
        with contextlib.suppress(DeviceError, OSError):
            if connection.alive:
                files.remove()
        connection.close()
