"""What a killed training goes on from: one file, replaced as a whole after every epoch.

A checkpoint carries the identity of its training (network, data, settings). One of another training, or one that
cannot be read, is not used: the training starts anew, and the log says why. The file is the SHA-256 of what
`torch.save` wrote, then that: torch itself would not notice a flipped bit.

Unlike weights, which are safetensors, the states of optimizers are containers in containers with numbers for keys, so
this stays torch's own format. It is pickle, of which `weights_only=True` admits tensors, numbers, strings and
containers, no code (since torch 2.6 also where somebody means harm: CVE-2025-32434).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

LARGEST_BYTES = 2**32
_DIGEST_BYTES = 32

_log = logging.getLogger(__name__)


def identity_of(module: nn.Module, *settings: object) -> str:
    """A digest of a network's structure and of settings whose repr is their value; weights do not enter."""
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in module.state_dict().items()]
    structure = re.sub(r" at 0x[0-9a-f]+", "", repr(module))  # addresses differ from one process to the next
    return hashlib.sha256(repr((structure, shapes, settings)).encode()).hexdigest()


def save_checkpoint(path: Path, identity: str, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) so that `path` is never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # a process that was thought dead may write, too
    content = io.BytesIO()
    torch.save({"identity": identity, **state}, content)
    with unfinished.open("wb") as file:
        file.write(hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_checkpoint(path: Path, identity: str) -> dict[str, Any] | None:
    """The state that `save_checkpoint` wrote for this identity, on the CPU; None to start anew."""
    if not path.exists():
        return None
    try:
        state = read_torch(path, digest_bytes=_DIGEST_BYTES)
        found = state["identity"]
    except Exception as error:  # a damaged file fails in any of a dozen ways inside pickle, zip and torch
        _log.warning("checkpoint %s cannot be read (%s: %s); training starts anew", path, type(error).__name__, error)
        return None
    if found != identity:
        _log.warning("checkpoint %s is of another network, data set or setting; training starts anew", path)
        return None
    return dict(state)


def read_torch(path: Path, digest_bytes: int = 0) -> Any:
    """What `torch.save` wrote, on the CPU: tensors, numbers, strings and containers of them, nothing that is code.

    `digest_bytes`: of a SHA-256 before it, which is compared. Raises ValueError if it is too large, would grow when it
    is unpacked, or is not what the digest says, and whatever zipfile, pickle and torch raise on a damaged file.
    """
    if (size := path.stat().st_size) > LARGEST_BYTES:
        raise ValueError(f"it has {size} bytes, at most {LARGEST_BYTES} are read")
    whole = path.read_bytes()
    digest, content = whole[:digest_bytes], whole[digest_bytes:]
    if digest_bytes and hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum is wrong")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(content):  # torch.save compresses nothing
            raise ValueError("it is larger unpacked than packed")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
