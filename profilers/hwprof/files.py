"""Reading that has a bound, writing that a kill or a full disk cannot leave half done, which files belong together."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

# Formats whose weights are in a second file of the same stem, with the suffix ".bin".
COMPANIONED = (".param", ".xml")


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a file. Raises ValueError if it is longer or a device, OSError if it cannot be read."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # a device never ends, a pipe waits
        raise ValueError("it is a device or a pipe, not a file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it is longer than {most_bytes} bytes, as no such file is")
    return content


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or none: to a temporary file beside it, to disk, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def companions(path: Path) -> tuple[Path, ...]:
    """The files beside a model file that belong to it: ncnn's x.bin beside x.param, OpenVINO's beside x.xml."""
    beside = path.with_suffix(".bin")
    return (beside,) if path.suffix in COMPANIONED and beside.is_file() else ()
