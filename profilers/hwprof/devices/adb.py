"""Android devices over adb: phones, tablets, boards that run adbd. Uses the `adb` program of this machine.

    adb                                   the only device that adb sees
    adb:0A1B2C3D?bundle=phone.tar.gz      a serial of `adb devices`
    adb:192.168.1.5:5555                  a device on the network, which is connected to

A phone has no Python. `bundle` is an archive with one (see `hwprof.bundle`), brought once and unpacked by the device's
own tar; `python` is an interpreter that the device has; without both, `python3` is looked for there. `folder` is where
our files go there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

from hwprof.archive import agent_archive
from hwprof.bundle import read_manifest
from hwprof.devices import require_options
from hwprof.devices.adb_connection import BYTES_PER_SECOND, COMMAND_SECONDS, AdbConnection, attached
from hwprof.devices.remote import PARTIAL, RemoteFiles, agent_command
from hwprof.errors import DeviceError, TargetError

# What the shell's user may write and run on every Android. There is no /tmp.
TEMPORARY = "/data/local/tmp"
# What a device's processor can run besides its own programs, by `uname -m`.
RUNS = {"aarch64": ("aarch64", "armv7l"), "armv8l": ("armv7l",), "x86_64": ("x86_64", "i686")}


class AdbDevice:
    """A device on adb, and a folder of our own on it."""

    # A phone that restarts, or a cable that somebody plugs in again.
    patience_seconds = 300.0

    def __init__(self, address: str = "", options: Mapping[str, str] | None = None) -> None:
        options = options or {}
        require_options("adb", options, ("bundle", "python", "folder"))
        if address and not re.fullmatch(r"[A-Za-z0-9\[][\x21-\x7e]*", address):
            raise TargetError(f"an adb device is a serial of `adb devices` or HOST:PORT, got {address!r}")
        folder = options.get("folder", f"{TEMPORARY}/hwprof")
        if not re.fullmatch(r"/[\x20-\x7e]+", folder) or folder.rstrip("/") in ("", TEMPORARY):
            raise TargetError(
                f"the folder of an adb device must be an absolute path on it and ours alone, got {folder!r}"
            )
        if "bundle" in options and "python" in options:
            raise TargetError("an adb device has a Python or takes it from a bundle: give python= or bundle=, not both")
        self._python = options.get("python", "")
        bundle = Path(options["bundle"]).expanduser() if "bundle" in options else None
        self._bundle = (bundle, read_manifest(bundle).machine) if bundle else None
        self._connection = AdbConnection(address)
        self._files = RemoteFiles(self._connection, shlex.quote(folder))
        weakref.finalize(self, _end, self._files, os.getpid())

    @staticmethod
    def found() -> list[str]:
        try:
            # One that this user may not open has no serial, but should be told of.
            return sorted({"adb" if serial.startswith("?") else f"adb:{serial}" for serial in attached()})
        except DeviceError:  # no adb here
            return []

    def start_agent(self) -> subprocess.Popen[str]:
        self._connection.require_ready()
        self._files.open()
        # All hosts must find the same lock file, whatever folders they use.
        python = f'TMPDIR="${{TMPDIR:-{TEMPORARY}}}" {self._interpreter()}'
        with tempfile.TemporaryDirectory() as folder:
            archive = self._files.keep(agent_archive(Path(folder)))
        return self._connection.start(agent_command(python, archive))

    def put(self, path: Path) -> str:
        return self._files.put(path)

    def tidy(self) -> None:
        self._files.tidy()

    def _interpreter(self) -> str:
        """The command of an interpreter on the device, as words of its shell. Raises DeviceError if it has none."""
        if self._bundle:
            return f"sh {shlex.quote(self._unpacked(*self._bundle))}/start"
        if self._python:
            return shlex.quote(self._python)
        found = self._connection.run("command -v python3 || command -v python || :").strip()
        if not found:
            serial = self._connection.serial
            raise DeviceError(
                f"{serial} has no Python; make a bundle for its processor ({self._machine()}) with"
                f" python -m hwprof.bundle and give it: adb:{serial}?bundle=FILE"
            )
        return shlex.quote(found)

    def _machine(self) -> str:
        return self._connection.run("uname -m").strip()

    def _unpacked(self, bundle: Path, made_for: str) -> str:
        """The folder of the bundle's content on the device, brought there if it is not there yet."""
        machine = self._machine()
        if made_for not in RUNS.get(machine, (machine,)):
            raise TargetError(f"{bundle} is for {made_for}, but {self._connection.serial} is {machine}: make another")
        archive = self._files.keep(bundle)
        folder = archive.rpartition("/")[0]
        self._connection.run(
            f"cd {shlex.quote(folder)} && touch -c . && {{ [ -d unpacked ] || {{ rm -rf *{PARTIAL} && "
            f"mkdir unpacked{PARTIAL} && tar xzf {shlex.quote(archive)} -C unpacked{PARTIAL} && "
            f"mv unpacked{PARTIAL} unpacked && rm -f {shlex.quote(archive)}; }}; }}",
            COMMAND_SECONDS + 3 * bundle.stat().st_size / BYTES_PER_SECOND,
        )
        return f"{folder}/unpacked"


def _end(files: RemoteFiles, owner: int) -> None:
    """Remove our model files when nobody needs the device any more; a forked child is not who needed it."""
    if os.getpid() == owner:
        with contextlib.suppress(DeviceError):
            files.remove()
