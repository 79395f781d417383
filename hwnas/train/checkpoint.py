"""What a killed training goes on from: one file, replaced as a whole after every epoch.

A checkpoint carries the identity of its training (network, data, settings). One of another training, or one that
cannot be read, is not used: the training starts anew, and the log says why. The file is the SHA-256 of what
`torch.save` wrote, then that: torch itself would not notice a flipped bit.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError("its checksum is wrong")
        state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
        found = state["identity"]
    except Exception as error:  # a damaged file fails in any of a dozen ways inside pickle, zip and torch
        _log.warning("checkpoint %s cannot be read (%s: %s); training starts anew", path, type(error).__name__, error)
        return None
    if found != identity:
        _log.warning("checkpoint %s is of another network, data set or setting; training starts anew", path)
        return None
    return dict(state)
