"""One SSH connection that many commands share, by the `ssh` program.

A first process, the master, holds the connection, and the process of every command passes through it: a file costs a
round trip and not a handshake. They wait for the end of pipes that this process holds, so they and what they started
on the machine end with it, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hwprof.answers import plain
from hwprof.devices import piped
from hwprof.devices.remote import partial_path, receive, shell_line
from hwprof.errors import DeviceError

# A machine that does not answer so many questions, so many seconds apart, is gone.
CONNECT_SECONDS = 10
ALIVE_SECONDS = 5
ALIVE_COUNT = 3
# Login scripts can be slow.
LOGIN_SECONDS = 30.0
# A command of ours, and the slowest of links for a file.
COMMAND_SECONDS = 60.0
BYTES_PER_SECOND = 50_000
# What a command of ours may say.
MAX_OUTPUT_BYTES = 2**20
_CONNECTED = b"hwprof is connected\n"


@dataclass(frozen=True)
class Login:
    """Who logs in where: the `address` as the user wrote it, and what ssh makes of it."""

    address: str
    arguments: tuple[str, ...]
    destination: str

    def by_hand(self, program: str = "ssh") -> str:
        """What a person types."""
        return shlex.join([program, *self.arguments, self.destination])


class SshConnection:
    """The connection of a login. Once it is lost, `open` makes it anew."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._master: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it is open, as far as one can know without using it."""
        return self._master is not None and self._master.poll() is None

    def open(self) -> None:
        """Connect. Raises DeviceError, with what to do about it."""
        self.close()
        if os.name == "posix":  # elsewhere ssh cannot share: every command connects anew
            self._folder = tempfile.TemporaryDirectory(prefix="hwprof-", dir=_short_folder())
        command = f"echo {_CONNECTED.decode().strip()}; exec cat >/dev/null"
        self._master = self._process(command, subprocess.PIPE, master=True)
        said, complaints = _Reader(self._master.stdout, until=_CONNECTED), _Reader(self._master.stderr)
        answered = said.found.wait(LOGIN_SECONDS)
        if said.kept == _CONNECTED:
            return
        self._master.kill()
        problem = complaints.text()
        self.close()
        if said.kept.endswith(_CONNECTED):
            raise DeviceError(
                f"a login script on {self._login.address} prints {said.text()[:100]!r}: commands cannot be told from "
                "it, so it must be silent where there is no terminal"
            )
        if not answered:
            raise DeviceError(
                f"{self._login.address} does not answer within {LOGIN_SECONDS:.0f} s, or a login script there waits "
                f"for something: try {self._login.by_hand()} true"
            )
        raise DeviceError(self._explained(problem))

    def close(self) -> None:
        """End the connection; does nothing if there is none."""
        if self._master is not None:
            with contextlib.suppress(OSError):
                if self._master.stdin:
                    self._master.stdin.close()
            try:
                self._master.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
            self._master = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def start(self, command: str) -> subprocess.Popen[str]:
        """A process here whose standard input and output are the command's."""
        return piped(self._command(command), start_new_session=True, env=_environment())

    def run(self, command: str) -> str:
        """Standard output of a command. Raises DeviceError, also if it fails."""
        return self._run(command, subprocess.DEVNULL, COMMAND_SECONDS)

    def push(self, path: Path, there: str) -> None:
        """Bring a file there, whole or not at all. Raises DeviceError."""
        partial, size_bytes = partial_path(there), path.stat().st_size
        folder = shlex.quote(there.rpartition("/")[0])
        command = f"umask 077; mkdir -p {folder} && cat > {shlex.quote(partial)}; {receive(partial, there, size_bytes)}"
        with path.open("rb") as file:
            self._run(command, file, COMMAND_SECONDS + size_bytes / BYTES_PER_SECOND)

    def _run(self, command: str, stdin: int | IO[bytes], seconds: float) -> str:
        process = self._process(command, stdin)
        said, complaints = _Reader(process.stdout), _Reader(process.stderr)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{self._login.address} did not do in {seconds:.0f} s what it was asked to; is it overloaded?"
            ) from None
        finally:
            process.kill()
            process.wait()
        problem = " ".join(complaints.text().split())
        if code == 0 and len(said.kept) < MAX_OUTPUT_BYTES:
            return said.text()
        if code == 0:
            raise DeviceError(f"{self._login.address} answers a command without end: {said.text()[:100]!r}")
        if code == 255:  # ssh's own
            raise DeviceError(self._explained(problem))
        if "No space left" in problem or "quota" in problem:
            raise DeviceError(
                f"the disk of {self._login.address} is full ({problem}): free some space, or name another folder="
            )
        raise DeviceError(f"{self._login.address} cannot keep our files: {problem or f'exit code {code}'}")

    def _process(self, command: str, stdin: int | IO[bytes], *, master: bool = False) -> subprocess.Popen[bytes]:
        # In a session of its own, for a Ctrl-C is meant for us: there is still something to tidy then.
        return subprocess.Popen(
            self._command(command, master=master),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=_environment(),
        )

    def _command(self, command: str, *, master: bool = False) -> list[str]:
        program = shutil.which("ssh")
        if program is None:
            raise DeviceError("there is no ssh program here: install OpenSSH's client (Debian: openssh-client)")
        settings = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "NoHostAuthenticationForLocalhost": "no",
            "UpdateHostKeys": "no",
            "ConnectTimeout": CONNECT_SECONDS,
            "ServerAliveInterval": ALIVE_SECONDS,
            "ServerAliveCountMax": ALIVE_COUNT,
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "LogLevel": "INFO",
            "ControlPersist": "no",
            "ControlMaster": "yes" if master and self._folder else "no",
            "ControlPath": f'"{self._folder.name.replace("%", "%%")}/ssh"' if self._folder else "none",
            # A key that was named is the one that is used, whatever others the agent of keys has.
            **({"IdentitiesOnly": "yes"} if "-i" in self._login.arguments else {}),
        }
        options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        return [program, "-T", *options, *self._login.arguments, "--", self._login.destination, shell_line(command)]

    def _explained(self, complaints: str) -> str:
        name, by_hand = self._login.address, self._login.by_hand()
        reason = complaints.strip()[-500:] or "ssh said nothing"
        if "IDENTIFICATION HAS CHANGED" in complaints:
            return (
                f"{name} does not have the host key that is known here: it was installed anew, or another machine is "
                f"in its place. If you know which, remove the old key (ssh-keygen -R) and connect by hand ({by_hand})"
            )
        if "Host key verification failed" in complaints:
            return (
                f"the host key of {name} is not known here: connect once by hand ({by_hand}) and accept it, if it is "
                "the one that ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub shows on the machine itself"
            )
        if "Permission denied" in complaints or "Too many authentication failures" in complaints:
            return (
                f"{name} does not let us in without a password: bring it a key ({self._login.by_hand('ssh-copy-id')}); "
                f"one with a passphrase must be in ssh-agent: {reason}"
            )
        return f"{name} cannot be reached: {reason}"


class _Reader(threading.Thread):
    """Reads a pipe to its end and keeps the last bytes; `found` is set at its end, or once it ends with `until`."""

    def __init__(self, stream: IO[bytes] | None, until: bytes | None = None) -> None:
        super().__init__(daemon=True)
        assert stream is not None
        self._stream, self._until = stream, until
        self.kept, self.found = bytearray(), threading.Event()
        self.start()

    def run(self) -> None:
        with contextlib.suppress(ValueError, OSError), self._stream:
            while chunk := os.read(self._stream.fileno(), 2**16):
                self.kept += chunk
                del self.kept[:-MAX_OUTPUT_BYTES]
                if self._until and self.kept.endswith(self._until):
                    self.found.set()
        self.found.set()

    def text(self) -> str:
        """What was said, once it is complete."""
        self.join(2)
        return plain(self.kept.decode("utf-8", "replace"), MAX_OUTPUT_BYTES)


def _short_folder() -> str | None:
    """Where the socket goes: its path may have about a hundred characters, and temporary folders can be deep."""
    return "/tmp" if len(tempfile.gettempdir()) > 50 and os.access("/tmp", os.W_OK) else None


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}  # the messages that are looked for are English
