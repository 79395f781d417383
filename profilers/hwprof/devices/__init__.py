"""One file per way to reach a machine. A device starts the agent there and brings model files to it.

A device is written as text: KIND, KIND:ADDRESS, and with options ?OPTION=VALUE&OPTION=VALUE behind, e.g. "local",
"ssh:pi@board?python=venv/bin/python", "adb:0A1B2C3D".
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl

from hwprof.errors import TargetError

DEVICES = {
    "local": "hwprof.devices.local:LocalDevice",
    "ssh": "hwprof.devices.ssh:SshDevice",
    "adb": "hwprof.devices.adb:AdbDevice",
}


class Device(Protocol):
    """A machine that can run the agent. Made from the address and the options of its text.

    Raises TargetError, when made, on an address or an option that cannot be used.
    """

    patience_seconds: float
    """How long to wait for it when it went away in the middle of a run."""

    def __init__(self, address: str, options: Mapping[str, str]) -> None: ...

    @staticmethod
    def found() -> list[str]:
        """Texts of the devices of this kind that can be seen from here without being told of them."""

    def start_agent(self) -> subprocess.Popen[str]:
        """A process here whose standard input and output are the agent's. Raises DeviceError."""

    def put(self, path: Path) -> str:
        """Bring a file, and those that `hwprof.files.companions` names, to the device; the path it has there.

        Raises DeviceError.
        """

    def tidy(self) -> None:
        """A new job begins: files that were put for earlier ones may be removed. Raises DeviceError."""


def device_class(kind: str) -> type[Device]:
    """The class of a kind of device. Raises TargetError on an unknown one."""
    if kind not in DEVICES:
        raise TargetError(f"unknown device {kind!r}; known: {', '.join(DEVICES)}")
    module, attribute = DEVICES[kind].split(":")
    return cast("type[Device]", getattr(importlib.import_module(module), attribute))


def make_device(text: str) -> Device:
    """The device of that text. Raises TargetError on one that cannot be."""
    place, _, options = text.partition("?")
    kind, _, address = place.partition(":")
    try:
        parsed = dict(parse_qsl(options, strict_parsing=True)) if options else {}
    except ValueError as error:
        raise TargetError(f"the options of the device {text!r} must be NAME=VALUE, joined by &: {error}") from error
    return device_class(kind)(address, parsed)


def make_devices(texts: str) -> dict[str, Device]:
    """The devices of comma-separated texts, by text. Raises TargetError on one that cannot be, or comes twice."""
    names = [text.strip() for text in texts.split(",")]
    if len(set(names)) < len(names):
        raise TargetError(f"the devices {texts!r} name one device twice")
    return {text: make_device(text) for text in names}


def piped(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """A process here with pipes of text on all three sides, as `start_agent` gives one. Raises OSError."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        **options,
    )


def require_options(kind: str, options: Mapping[str, str], known: tuple[str, ...]) -> None:
    """Raise TargetError on an option that devices of this kind do not have."""
    for name in options:
        if name not in known:
            raise TargetError(f"{kind} devices have no option {name!r}; they have {', '.join(known) or 'none'}")
