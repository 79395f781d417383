"""A folder that is replaced as a whole: a kill, a full disk or an error leaves the old content or the new one.

An exported network is several files (weights beside a graph, the card), which no order of renames could keep together.
So they are written to a folder beside the one they are for, brought to disk, and the two folders are exchanged by one
system call, on Linux and macOS. Where there is no such call, the old folder is moved aside first; a kill between the
two renames leaves it as `.NAME.old`, and the next export of it moves it back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

_AT_FDCWD, _EXCHANGE = -100, 2  # the latter of Linux's renameat2 and of macOS's renamex_np alike


@contextlib.contextmanager
def replaced_folder(final: Path, *, keep: bool = False) -> Iterator[Path]:
    """An empty folder to write to; when the block ends without an error, it takes the place of `final`.

    `keep`: with what it has not and the older one has.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f".{final.name}.old")
    if aside.exists() and not final.exists():
        aside.rename(final)
    with TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as folder:
        new = Path(folder) / "new"
        new.mkdir()  # the temporary folder itself is for its owner only
        yield new
        if keep and final.exists():
            _take_over(final, new)
        _to_disk(new)
        _put(new, final, aside)
        _to_disk(final.parent)


def remove_unfinished(final: Path) -> None:
    """Remove what kills left of folders that were to take the place of `final`; nobody may be writing one."""
    for left in final.parent.glob(f".{final.name}.*"):
        if left.name != f".{final.name}.old":
            shutil.rmtree(left)


def _take_over(old: Path, new: Path) -> None:
    """Give the new folder what only the old one has. Files are linked, so that the old one stays as it is."""
    for path in old.iterdir():
        there = new / path.name
        if path.is_dir():
            shutil.copytree(path, there, symlinks=True, copy_function=_link)
        elif not there.exists():
            _link(path, there)


def _link(path: str | Path, there: str | Path) -> None:
    try:
        os.link(path, there)
    except OSError:  # a file system that has no links
        shutil.copy2(path, there)


def _put(new: Path, final: Path, aside: Path) -> None:
    """Let `final` be the new folder; the old one, if any, is `new` afterwards, or gone."""
    if not final.exists():
        new.rename(final)
    elif not _exchange(new, final):
        if aside.exists():
            shutil.rmtree(aside)
        final.rename(aside)
        try:
            new.rename(final)
        except BaseException:
            aside.rename(final)
            raise
        shutil.rmtree(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    paths = os.fsencode(first), os.fsencode(second)
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None)
    if hasattr(library, "renameat2"):
        return bool(library.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE) == 0)
    if hasattr(library, "renamex_np"):
        return bool(library.renamex_np(*paths, _EXCHANGE) == 0)
    return False


def _to_disk(folder: Path) -> None:
    """Bring the files of a folder to disk, and its list of them, where the system lets folders be opened."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            _to_disk(path)
        elif path.is_file():
            _sync(path)
    if sys.platform != "win32":
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
