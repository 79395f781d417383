"""What TensorRT learned on this GPU, kept: built engines, and the timing cache that makes the next build fast.

Both are in one folder, HWPROF_CACHE if it is set, else the user's cache. They hold for one version of TensorRT on one
kind of GPU, which are part of their names; TensorRT itself checks it again. Files are written whole or not at all, so
that several processes may build at once; what another one learned meanwhile is not lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from hwprof.cuda import Gpu
from hwprof.errors import MeasurementError
from hwprof.files import write_atomic

LARGEST_BYTES = 4 << 30  # engines kept; the oldest go first


def cache_folder() -> Path:
    """Where engines and timing caches are kept."""
    chosen = os.environ.get("HWPROF_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwprof"


def writable_folder(name: str) -> Path:
    """A folder in it, which is there. Raises MeasurementError if it cannot be."""
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def timing_cache_path(version: str, gpu: Gpu) -> Path:
    """The timing cache of a GPU and a version of TensorRT."""
    kind = re.sub(r"[^a-z0-9]+", "-", f"{gpu.name} sm {gpu.capability}".lower()).strip("-")
    return cache_folder() / f"tensorrt-{version}-{kind}.timing"


def attach_timing_cache(config: Any, path: Path) -> None:
    """Give the builder what earlier builds measured; an empty cache where that is of no use here."""
    for data in (_content(path), b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return
    raise MeasurementError("TensorRT accepts no timing cache, not even an empty one")


def save_timing_cache(config: Any, path: Path) -> None:
    """Write what is known now, together with what others wrote since it was read."""
    cache = config.get_timing_cache()
    others = config.create_timing_cache(_content(path))
    if others is not None:
        cache.combine(others, ignore_mismatch=False)
    _write(path, bytes(memoryview(cache.serialize())))


def engine_path(model: Path, version: str, gpu: Gpu, settings: dict[str, object]) -> Path:
    """Where the engine of a model file is kept: a digest of its content, the GPU, the version and all settings."""
    digest = hashlib.sha256(model.read_bytes())
    weights = model.with_name(model.name + ".data")  # large weights, as torch writes them
    if weights.is_file():
        digest.update(weights.read_bytes())
    made_for = {"tensorrt": version, "gpu": gpu.name, "capability": gpu.capability, **settings}
    digest.update(json.dumps(made_for, sort_keys=True).encode())
    return cache_folder() / "engines" / f"{digest.hexdigest()[:40]}.engine"


def save_engine(path: Path, plan: bytes) -> None:
    """Keep an engine; the oldest ones go if there are too many."""
    _write(path, plan)
    kept = 0
    for file in sorted(path.parent.glob("*.engine"), key=_age):
        with contextlib.suppress(OSError):  # another process may tidy up too
            kept += file.stat().st_size
            if kept > LARGEST_BYTES and file != path:
                file.unlink()


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomic(path, data)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> MeasurementError:
    return MeasurementError(
        f"{path} cannot be written ({error}); set HWPROF_CACHE to a folder with some gigabytes of room"
    )
