"""Android devices over adb: phones, tablets, boards that run adbd. Uses the `adb` program of this machine.

    adb:0A1B2C3D?bundle=phone.tar.gz      a serial of `adb devices`; HOST:PORT is connected to; nothing: the only one

A phone has no Python. `bundle` is an archive with one (see `hwprof.bundle`), brought once and unpacked by the device's
own tar; `python` is an interpreter that the device has; without both, `python3` is looked for there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hwprof.archive import agent_archive
from hwprof.bundle import read_manifest
from hwprof.devices import require_options
from hwprof.devices.remote import PARTIAL, RemoteFiles, agent_command, partial_path, receive, shell_line
from hwprof.errors import DeviceError, TargetError

FOLDER = "/data/local/tmp/hwprof"
COMMAND_SECONDS = 60.0
# A phone that restarts, or a cable that somebody plugs in again.
PATIENCE_SECONDS = 300.0
# The slowest of cables and phones; for files, and for what they unpack.
BYTES_PER_SECOND = 2**20
# States of `adb devices` in which a device cannot be used, and what to do about them.
ADVICE = {
    "unauthorized": "unlock it and accept the key of this computer on its screen",
    "offline": "plug it in again, or run adb reconnect offline",
    "authorizing": "wait a moment",
    "connecting": "wait a moment",
    "no permissions": "let this user open it: install the udev rules for Android devices, then plug it in again",
}
# What a device's processor can run besides its own programs, by `uname -m`.
RUNS = {"aarch64": ("aarch64", "armv7l"), "armv8l": ("armv7l",), "x86_64": ("x86_64", "i686")}
_TEMPORARY = "/data/local/tmp"
_NOTHING = "adb sees no device: plug it in, and allow USB debugging in its developer options"


class AdbDevice:
    """A device on adb, and a folder of our own on it."""

    patience_seconds = PATIENCE_SECONDS

    def __init__(self, address: str = "", options: Mapping[str, str] | None = None) -> None:
        options = options or {}
        require_options("adb", options, ("folder", "python", "bundle"))
        if address and not re.fullmatch(r"[A-Za-z0-9\[][\x21-\x7e]*", address):
            raise TargetError(f"an adb device is a serial of `adb devices` or HOST:PORT, got {address!r}")
        self._serial, self._folder = address, options.get("folder", FOLDER)
        self._python = options.get("python", "")
        bundle = Path(options["bundle"]).expanduser() if options.get("bundle") else None
        if not re.fullmatch(r"/[\x20-\x7e]*", self._folder) or self._folder == "/":
            raise TargetError(f"the folder of an adb device must be an absolute path on it, got {self._folder!r}")
        if bundle and self._python:
            raise TargetError("an adb device takes its Python from a bundle or has one: give bundle= or python=")
        self._bundle = (bundle, read_manifest(bundle).machine) if bundle else None
        self._files = RemoteFiles(self, shlex.quote(self._folder))

    @staticmethod
    def found() -> list[str]:
        try:
            return sorted({"adb" if serial.startswith("?") else f"adb:{serial}" for serial in _attached()})
        except DeviceError:  # no adb here
            return []

    def start_agent(self) -> subprocess.Popen[str]:
        self._require_ready()
        self._files.open()
        # Android has no /tmp; and all hosts must find the same lock file, whatever folders they use.
        python = f'TMPDIR="${{TMPDIR:-{_TEMPORARY}}}" {self._interpreter()}'
        with tempfile.TemporaryDirectory() as folder:
            archive = self._files.keep(agent_archive(Path(folder)))
        try:
            return subprocess.Popen(
                [_program(), "-s", self._serial, "shell", "-T", shell_line(agent_command(python, archive))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise DeviceError(f"adb cannot be started: {error}") from error

    def put(self, path: Path) -> str:
        return self._files.put(path)

    def tidy(self) -> None:
        self._files.tidy()

    def run(self, command: str) -> str:
        return self._shell(command, COMMAND_SECONDS)

    def push(self, path: Path, there: str) -> None:
        partial, size_bytes = partial_path(there), path.stat().st_size
        seconds = COMMAND_SECONDS + size_bytes / BYTES_PER_SECOND
        self.run(f"mkdir -p {shlex.quote(there.rpartition('/')[0])}")
        _adb(["-s", self._serial, "push", str(path.resolve()), partial], seconds)
        self.run(receive(partial, there, size_bytes))

    def _shell(self, command: str, seconds: float) -> str:
        return _adb(["-s", self._serial, "shell", "-T", shell_line(command)], seconds)

    def _require_ready(self) -> None:
        """Raise DeviceError, with the next step, unless adb can use the device."""
        attached = _attached()
        if not self._serial:
            if len(attached) != 1:
                seen = f"adb sees {', '.join(attached)}: name one, adb:SERIAL" if attached else _NOTHING
                raise DeviceError(seen)
            self._serial = next(iter(attached))
        if attached.get(self._serial) != "device" and re.search(r":\d+$", self._serial):
            for verb in ("disconnect", "connect"):  # one that was lost stays "offline" until it is given up
                with contextlib.suppress(DeviceError):
                    _adb([verb, self._serial], COMMAND_SECONDS)
            attached = _attached()
        state = attached.get(self._serial)
        if state is None:
            raise DeviceError(f"adb sees no device {self._serial}; it sees {', '.join(attached) or 'none'}")
        if state != "device":
            advice = next((text for key, text in ADVICE.items() if state.startswith(key)), "start Android on it")
            raise DeviceError(f"adb says that {self._serial} is {state.partition(' (')[0]}: {advice}")

    def _interpreter(self) -> str:
        """The command of an interpreter on the device, as words of its shell. Raises DeviceError if it has none."""
        if self._bundle:
            return f"sh {shlex.quote(self._unpacked(*self._bundle))}/start"
        if self._python:
            return shlex.quote(self._python)
        found = self.run("command -v python3 || command -v python || :").strip()
        if not found:
            raise DeviceError(
                f"{self._serial} has no Python; make a bundle for its {self._machine()} processor with"
                f" python -m hwprof.bundle and give it: adb:{self._serial}?bundle=FILE"
            )
        return shlex.quote(found)

    def _machine(self) -> str:
        return self.run("uname -m").strip()

    def _unpacked(self, bundle: Path, made_for: str) -> str:
        """The folder of the bundle's content on the device, brought there if it is not there yet."""
        machine = self._machine()
        if made_for not in RUNS.get(machine, (machine,)):
            raise TargetError(f"{bundle} is for {made_for}, but {self._serial} is {machine}: make another one")
        archive = self._files.keep(bundle)
        folder = archive.rpartition("/")[0]
        unpack = (
            f"cd {shlex.quote(folder)} && touch -c . && {{ [ -d unpacked ] || {{ rm -rf *{PARTIAL} && "
            f"mkdir unpacked{PARTIAL} && tar xzf {shlex.quote(archive)} -C unpacked{PARTIAL} && "
            f"mv unpacked{PARTIAL} unpacked && rm -f {shlex.quote(archive)}; }}; }}"
        )
        self._shell(unpack, COMMAND_SECONDS + 3 * bundle.stat().st_size / BYTES_PER_SECOND)
        return f"{folder}/unpacked"


def _attached() -> dict[str, str]:
    """Serials of the devices that adb sees, with their states. Raises DeviceError if there is no adb."""
    _, _, lines = _adb(["devices"], COMMAND_SECONDS).partition("List of devices attached")
    return dict(re.findall(r"^(\S+)\s+(\S.*?)\s*$", lines, flags=re.MULTILINE))


def _adb(arguments: Sequence[str], seconds: float) -> str:
    """Standard output of an adb command. Raises DeviceError if it fails, or takes too long."""
    try:
        done = subprocess.run(
            [_program(), *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"adb {arguments[-1][:80]} took longer than {seconds:.0f} s; is the device awake?") from None
    except OSError as error:
        raise DeviceError(f"adb cannot be started: {error}") from error
    output, said = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    if done.returncode != 0:
        reason = " ".join((said or output).split())[-300:] or f"exit code {done.returncode}"
        raise DeviceError(f"adb could not do its work: {reason}")
    return output


def _program() -> str:
    """The adb of this machine. Raises DeviceError if there is none."""
    homes = [os.environ[name] for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT") if os.environ.get(name)]
    folders = os.pathsep.join([os.environ.get("PATH", os.defpath), *(f"{home}/platform-tools" for home in homes)])
    program = shutil.which("adb", path=folders)
    if program is None:
        raise DeviceError("there is no program adb here; install Android's platform tools (Debian: apt install adb)")
    return program
