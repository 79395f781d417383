"""This machine: the agent is a process of its own, so that it measures nothing but the runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import hwprof
from hwprof.devices import piped, require_options
from hwprof.errors import DeviceError, TargetError


class LocalDevice:
    """The machine that the host runs on."""

    patience_seconds = 5.0

    def __init__(self, address: str = "", options: Mapping[str, str] | None = None) -> None:
        if address:
            raise TargetError(f"the device local is this machine and has no address, got {address!r}")
        require_options("local", options or {}, ())

    @staticmethod
    def found() -> list[str]:
        return ["local"]

    def start_agent(self) -> subprocess.Popen[str]:
        source_root = str(Path(hwprof.__file__).resolve().parent.parent)
        search_path = os.pathsep.join([source_root, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            # An idle thread that spins steals the core of the one being timed.
            environment = {**os.environ, "PYTHONPATH": search_path, "OMP_WAIT_POLICY": "PASSIVE"}
            return piped([sys.executable, "-m", "hwprof"], env=environment)
        except OSError as error:
            raise DeviceError(f"the agent cannot be started with {sys.executable}: {error}") from error

    def put(self, path: Path) -> str:
        return str(path.resolve())

    def tidy(self) -> None:
        """Nothing was brought."""
