"""OpenSSH's server on loopback, for tests: keys, settings and port of its own, of the user who runs the tests."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Sshd:
    """A server that is killed and started again at will, always as the same machine at the same address."""

    def __init__(self, folder: Path) -> None:
        if SSHD is None or shutil.which("ssh") is None:
            pytest.skip("needs OpenSSH's server and client (Debian: openssh-server, openssh-client)")
        self.folder, self.port, self._process = folder, _free_port(), None
        self.device_folder = folder / "device"
        for name in ("home", "temporary"):
            (folder / name).mkdir()
        for name in ("host", "user", "stranger"):
            _keygen(folder / name)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        self.trust("host")
        (folder / "config").write_text(
            f"Host device\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"Host *\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
            f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        )

    def trust(self, key: str | None) -> None:
        """Which of the keys the client takes for this server's; none if it knows it not."""
        line = f"[127.0.0.1]:{self.port} {(self.folder / f'{key}.pub').read_text()}" if key else ""
        (self.folder / "known_hosts").write_text(line)

    def start(self, settings: str = "") -> None:
        config = self.folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1\nHostKey {self.folder}/host\nAuthorizedKeysFile {self.folder}/authorized\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n"
            # Login scripts of whoever runs the tests have no part in them.
            f"SetEnv HOME={self.folder}/home TMPDIR={self.folder}/temporary\n{settings}\n"
        )
        if os.getuid() == 0:  # where the server's unprivileged half lives; the system's service makes it, too
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        assert SSHD is not None
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", config, "-p", str(self.port)], stderr=log)
        log.close()
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """As if the machine lost its power: everything that the server started ends at once."""
        if self._process is None:
            return
        for process in (self._process.pid, *self.children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def children(self) -> list[int]:
        """All processes that the server started, and theirs."""
        assert self._process is not None
        parents = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        found = [self._process.pid]
        for process in found:
            found += [child for child, parent in parents.items() if parent == process]
        return found[1:]

    def agents(self) -> list[int]:
        """Processes that run an archive of the device's folder, whoever is their parent."""
        return self._processes(lambda words: any(word.endswith(".pyz") for word in words[1:]))

    def clients(self) -> list[int]:
        """The processes of ssh that are connected to this server, or try to."""
        return self._processes(lambda words: words[0].endswith("ssh"))

    def _processes(self, are: Callable[[list[str]], bool]) -> list[int]:
        found = []
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = command.read_bytes().decode(errors="replace").split("\0")
                if are(words) and any(str(self.folder) in word for word in words):
                    found.append(int(command.parent.name))
        return found

    def text(self, **options: str) -> str:
        """The device, in words."""
        options = {
            "config": str(self.folder / "config"),
            "folder": str(self.device_folder),
            "python": sys.executable,
            **options,
        }
        return "ssh:device?" + "&".join(f"{name}={quote(value)}" for name, value in options.items() if value)


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
