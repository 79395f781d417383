"""A phone without metal: Android's own adbd, shell and commands as arm64 programs, in namespaces of their own.

Debian builds adbd, toybox and mksh, what Android's userland is made of, for arm64. The kernel starts them through qemu,
which is registered for arm64 in this phone's namespaces alone. Its network has a loopback and nothing else, for adbd
listens on every address and lets everybody in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import textwrap
import time
from pathlib import Path

PORTS = range(6555, 6655)  # below 5586 adb would take it for an emulator of its own
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# The first process of the namespaces: they end with it, and it ends with the standard input that the tests hold.
HOLDER = r"""
    set -e
    PATH="$TOOLS/sbin:$TOOLS/usr/sbin:$PATH:/usr/sbin:/sbin"
    ip link set lo up
    for device in null zero random urandom; do mount --bind /dev/$device "$PHONE/dev/$device"; done
    mount -t proc proc "$PHONE/proc"
    mount --rbind /sys "$PHONE/sys"
    mount -t tmpfs tmpfs "$PHONE/data"
    mkdir -p "$PHONE/data/formats" "$PHONE/data/local/tmp"
    mount -t binfmt_misc none "$PHONE/data/formats"
    printf '%s' ":arm64:M::$MAGIC:$MASK:$TOOLS/usr/bin/qemu-aarch64:FP" > "$PHONE/data/formats/register"
    echo ready
    exec cat
"""


class Phone:
    """Namespaces with a phone in them that can be switched on and off; `adb` is a program that reaches it."""

    def __init__(self, peers: Path, folder: Path) -> None:
        self._root, tools = peers / "phone", peers / "tools"
        self._vsock, self._port = _taken_on_vsock()
        self.serial = f"127.0.0.1:{self._port}"
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
             "sh", "-c", textwrap.dedent(HOLDER)],
            env={**os.environ, "PHONE": str(self._root), "TOOLS": str(tools), "MAGIC": MAGIC, "MASK": MASK},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            _, said = self._holder.communicate()
            raise RuntimeError(f"the phone's namespaces cannot be made: {said}")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        self._enter = ["nsenter", "--preserve-credentials", "--user", "--net", "--pid", "--target", children.split()[0]]
        self._adbd: subprocess.Popen[bytes] | None = None
        self.adb, self.log = folder / "adb", folder / "adbd.log"
        libraries = tools / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
        program = tools / "usr" / "lib" / "android-sdk" / "platform-tools" / "adb"
        self.adb.write_text(
            "#!/bin/sh\n"
            f"exec {' '.join(self._enter)} env HOME='{folder}' ANDROID_ADB_SERVER_PORT=6037 "
            f"LD_LIBRARY_PATH='{libraries}:{libraries}/android' '{program}' \"$@\"\n"
        )
        self.adb.chmod(0o755)

    def switch_on(self) -> None:
        """Start adbd and wait until it listens."""
        adbd = ["/usr/sbin/chroot", self._root, "/usr/lib/android-sdk/platform-tools/adbd"]
        with self.log.open("wb") as log:
            self._adbd = subprocess.Popen(
                [*self._enter, "--mount", "env", "-i", "PATH=/bin", f"ADBD_PORT={self._port}", *adbd],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        for _ in range(300):
            if "adbd started" in self.log.read_text():
                return
            time.sleep(0.1)
        raise RuntimeError(f"the phone's adbd does not start: {self.log.read_text()}")

    def switch_off(self) -> None:
        """Kill adbd, as when the cable is pulled: what it started goes on until it notices."""
        if self._adbd is not None:
            os.killpg(self._adbd.pid, signal.SIGKILL)
            self._adbd.wait()
            self._adbd = None

    def close(self) -> None:
        """End all that was started."""
        self.switch_off()
        self._holder.communicate()
        if self._vsock is not None:
            self._vsock.close()


def _taken_on_vsock() -> tuple[socket.socket | None, int]:
    """A port that adbd cannot have on vsock, where it would listen too: no network namespace confines that."""
    try:
        vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError:  # the kernel has none
        return None, PORTS[0]
    for port in PORTS:  # another phone may have one
        with contextlib.suppress(OSError):
            vsock.bind((socket.VMADDR_CID_ANY, port))
            return vsock, port
    raise RuntimeError(f"no port of {PORTS} is free on vsock")
