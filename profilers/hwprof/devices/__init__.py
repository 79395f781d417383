"""One file per way to reach a machine. A device starts the agent there and brings model files to it."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from typing import Protocol, cast

from hwprof.errors import TargetError

DEVICES = {
    "local": "hwprof.devices.local:LocalDevice",
}


class Device(Protocol):
    """A machine that can run the agent."""

    def start_agent(self) -> subprocess.Popen[str]:
        """A process here whose standard input and output are the agent's. Raises DeviceError."""

    def put(self, path: Path) -> str:
        """Bring a file to the device; the path it has there. Raises DeviceError."""


def make_device(name: str) -> Device:
    """The device of a target's `device` field. Raises TargetError on an unknown one."""
    if name not in DEVICES:
        raise TargetError(f"unknown device {name!r}; known: {', '.join(DEVICES)}")
    module, attribute = DEVICES[name].split(":")
    return cast(Device, getattr(importlib.import_module(module), attribute)())
