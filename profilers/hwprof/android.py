"""What Android tells of a device, with the programs that it has for that."""

from __future__ import annotations

import re
import subprocess
from functools import lru_cache
from pathlib import Path

GETPROP = Path("/system/bin/getprop")
SECONDS = 10


@lru_cache(maxsize=1)
def properties() -> dict[str, str]:
    """The system's properties; empty where this is no Android."""
    return dict(re.findall(r"^\[([^\]]+)\]: \[(.*)\]$", _run([str(GETPROP)]), flags=re.MULTILINE))


def identity() -> dict[str, str]:
    """Model and version of Android; empty where this is none. Updates change clocks and schedulers."""
    facts = {
        "phone": _join("ro.product.manufacturer", "ro.product.model"),
        "android": _join("ro.build.version.release", "ro.build.id"),
    }
    return {name: value for name, value in facts.items() if value}


def processor() -> str:
    """The name of the system on the chip, empty if unknown."""
    return _join("ro.soc.manufacturer", "ro.soc.model") or properties().get("ro.board.platform", "")


def battery() -> str:
    """Charge and whether it is charged now, e.g. "85%, discharging"; empty if unknown."""
    facts = dict(re.findall(r"^\s*(level|status): (\d+)$", _dumpsys_battery(), flags=re.MULTILINE))
    status = {"2": "charging", "3": "discharging", "4": "not charging", "5": "full"}.get(facts.get("status", ""))
    return ", ".join(filter(None, [f"{facts['level']}%" if "level" in facts else "", status]))


def is_emulator() -> bool:
    """Whether this is the emulator of Android's developer tools."""
    facts = properties()
    return "1" in (facts.get("ro.kernel.qemu"), facts.get("ro.boot.qemu")) or facts.get("ro.hardware") in (
        "ranchu",
        "goldfish",
    )


def _join(*names: str) -> str:
    return " ".join(filter(None, (properties().get(name, "") for name in names)))


def _dumpsys_battery() -> str:
    return _run(["/system/bin/dumpsys", "battery"]) if properties() else ""


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")
