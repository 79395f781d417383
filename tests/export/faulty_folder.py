"""Replaces a folder again and again, with a fault at its first, second, ... step in the file system; a process.

Prints one JSON line for each fault: how the system exchanges folders, the fault, and what is in the folder afterwards.
Where it exchanges them in one step, what only the older folder has is kept.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hwnas.export import folder

EVENTS = ("open", "os.link", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "ctypes.dlsym")


def content(path: Path) -> Any:
    if not path.exists():
        return None
    return {str(each.relative_to(path)): each.read_text() for each in sorted(path.rglob("*")) if each.is_file()}


def fill(place: Path, text: str) -> None:
    for name in ("graph.xml", "graph.bin", "card.json"):
        (place / name).write_text(text)


def keep_more(place: Path) -> None:
    """What only the older folder has, some of it in a folder of another export."""
    (place / "older.json").write_text("kept")
    (place / "onnx" / "net").mkdir(parents=True)
    (place / "onnx" / "net" / "net.onnx").write_text("kept")


def faulty(final: Path, fault: str, step: int, keep: bool) -> None:
    """Replace the folder's content in a child process, with a fault at that step."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and seen < step:
            seen += 1
            if seen == step:
                if fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(hook)
    try:
        with folder.replaced_folder(final, keep=keep) as new:
            fill(new, "new")
    except OSError:
        os._exit(1)
    os._exit(0 if seen < step else 1)


def tried(exchanges: bool, fault: str) -> Iterator[dict[str, Any]]:
    keep = exchanges  # either has all steps of the other but its own
    for step in range(1, 100):
        place = Path(mkdtemp())
        final = place / "net"
        final.mkdir()
        fill(final, "old")
        if keep:
            keep_more(final)
        child = os.fork()
        if child == 0:
            if not exchanges:
                folder._exchange = lambda first, second: False
            faulty(final, fault, step, keep)
        _, status = os.waitpid(child, 0)
        found = content(final)
        with contextlib.suppress(ZeroDivisionError), folder.replaced_folder(final):
            raise ZeroDivisionError  # the next export of the network, which fails
        left = sorted(path.name for path in place.iterdir())
        yield {"exchanges": exchanges, "fault": fault, "found": found, "after": content(final), "left": left}
        shutil.rmtree(place)
        if status == 0:
            return
    raise RuntimeError("it never came to an end")


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # it takes most of the time, and the machine stays up
    for exchanges in (True, False):
        for fault in ("kill", "full disk"):
            for state in tried(exchanges, fault):
                print(json.dumps(state))  # noqa: T201
