"""The `adb` program of this machine and the shell of one device behind it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hwprof.devices import piped
from hwprof.devices.remote import partial_path, receive, shell_line
from hwprof.errors import DeviceError

COMMAND_SECONDS = 60.0
# The slowest of cables and phones; for files, and for what is unpacked from them.
BYTES_PER_SECOND = 2**20
# States of `adb devices` in which a device cannot be used, and what to do about them.
ADVICE = {
    "unauthorized": "unlock it and accept the key of this computer on its screen",
    "authorizing": "wait a moment",
    "connecting": "wait a moment",
    "offline": "plug it in again, or run adb reconnect offline",
    "no permissions": "let this user open it: install the udev rules for Android devices, then plug it in again",
}
_NOTHING = "adb sees no device: plug it in, and allow USB debugging in its developer options"


class AdbConnection:
    """The shell of the device with that serial; of the only one that adb sees if it is empty."""

    def __init__(self, serial: str) -> None:
        self.serial = serial

    def require_ready(self) -> None:
        """Raise DeviceError, with the next step, unless adb can use the device. HOST:PORT is connected to."""
        there = attached()
        if not self.serial:
            if len(there) != 1:
                raise DeviceError(f"adb sees {', '.join(there)}: name one, adb:SERIAL" if there else _NOTHING)
            self.serial = next(iter(there))
        if there.get(self.serial) != "device" and re.search(r":\d+$", self.serial):
            for verb in ("disconnect", "connect"):  # one that was lost stays "offline" until it is given up
                with contextlib.suppress(DeviceError):
                    _adb([verb, self.serial], COMMAND_SECONDS)
            there = attached()
        state = there.get(self.serial)
        if state is None:
            raise DeviceError(f"adb sees no device {self.serial}; it sees {', '.join(there) or 'none'}")
        if state != "device":
            advice = next((text for key, text in ADVICE.items() if state.startswith(key)), "start Android on it")
            raise DeviceError(f"adb says of {self.serial}: {re.split('[(;]', state)[0].strip()}; {advice}")

    def run(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """Standard output of a command of the POSIX shell. Raises DeviceError, also if the command fails."""
        return _adb(["-s", self.serial, "shell", "-T", shell_line(command)], seconds)

    def push(self, path: Path, there: str) -> None:
        """Bring a file to a path there, whole or not at all; its folder is made if missing. Raises DeviceError."""
        partial, size_bytes = partial_path(there), path.stat().st_size
        # adbd makes the folder.
        _adb(["-s", self.serial, "push", str(path.resolve()), partial], COMMAND_SECONDS + size_bytes / BYTES_PER_SECOND)
        self.run(receive(partial, there, size_bytes))

    def start(self, command: str) -> subprocess.Popen[str]:
        """A process here that is a command there. Raises DeviceError if there is no adb."""
        program = _program()
        try:
            return piped([program, "-s", self.serial, "shell", "-T", shell_line(command)])
        except OSError as error:
            raise DeviceError(f"adb cannot be started: {error}") from error


def attached() -> dict[str, str]:
    """Serials of the devices that adb sees, with their states. Raises DeviceError if there is no adb."""
    _, _, lines = _adb(["devices"], COMMAND_SECONDS).partition("List of devices attached")
    return dict(re.findall(r"^(\S+)\s+(\S.*?)\s*$", lines, flags=re.MULTILINE))


def _adb(arguments: Sequence[str], seconds: float) -> str:
    """Standard output of an adb command. Raises DeviceError if it fails, or takes too long."""
    program = _program()
    try:
        done = subprocess.run(
            [program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"adb did not end within {seconds:.0f} s; is the device awake?") from None
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
        raise DeviceError("there is no program adb here: install Android's platform tools (Debian: apt install adb)")
    return program
