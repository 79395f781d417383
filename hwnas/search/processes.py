"""Names of processes by which another process of the same machine can tell that one has died."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


def this_process() -> str:
    """This process as "machine:number". Containers that share a host name are machines of their own."""
    return f"{_machine()}:{os.getpid()}"


def is_dead(name: str) -> bool:
    """Whether a process of this machine has ended; False of one elsewhere, which cannot be known here."""
    machine, _, number = name.strip().rpartition(":")
    return machine == _machine() and number.isdigit() and not _is_process(int(number))


@cache
def _machine() -> str:
    """The host's name and the number space of its processes, which a container has of its own."""
    try:
        space = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    except OSError:
        space = "0"
    return f"{socket.gethostname()}/{space}"


def _is_process(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
