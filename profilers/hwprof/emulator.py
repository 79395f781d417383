"""Whether this machine only pretends to be what it is: times of an emulator prove that something runs, no more."""

from __future__ import annotations

import re
from pathlib import Path

from hwprof import android

# The beginning of a machine's name -> its family; an i686 program on an x86-64 kernel is not emulated.
_FAMILIES = {
    "x86": "x86",
    "amd64": "x86",
    "i3": "x86",
    "i4": "x86",
    "i5": "x86",
    "i6": "x86",
    "arm": "arm",
    "aarch64": "arm",
    "riscv": "riscv",
}


def emulated(machine: str, cpu: str, root: Path = Path("/")) -> str | None:
    """The emulator that runs this process, None if none was noticed. `machine` is its architecture."""
    if android.is_emulator():
        return "android-emulator"
    if "QEMU TCG" in cpu:
        return "qemu-system"
    real = _kernel_family(root)
    # An emulator of single programs translates the architecture's name, but not all that the kernel says.
    return "qemu-user" if real is not None and _family(machine) not in (None, real) else None


def _kernel_family(root: Path) -> str | None:
    for name, pattern in (("proc/sys/kernel/arch", r"(\w+)"), ("sys/devices/system/cpu/modalias", r"cpu:type:(\w+)")):
        found = re.match(pattern, _read(root / name))
        if found and (family := _family(found.group(1))):
            return family
    described = _read(root / "proc/cpuinfo")
    if re.search(r"^CPU implementer\s*:", described, flags=re.MULTILINE):
        return "arm"
    return "x86" if re.search(r"^vendor_id\s*: (Genuine|Authentic|Hygon|Centaur)", described, re.MULTILINE) else None


def _family(machine: str) -> str | None:
    return next((family for start, family in _FAMILIES.items() if machine.lower().startswith(start)), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
