"""What machine this is: what never changes under a table (identity) and what should be known about it (state)."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def identity() -> dict[str, str]:
    """Facts that make two measurements comparable: processor, cores, instruction set, operating system."""
    return {
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        "machine": platform.machine(),
        "system": platform.system(),
        "governor": _read(_CPU / "scaling_governor") or "unknown",
    }


def state() -> dict[str, str]:
    """Facts that vary: kernel, Python, load, clock, and how much of the CPU the hypervisor gave to others."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
        "clock_mhz": _clock_mhz(),
        "stolen_seconds": f"{stolen_seconds():.2f}",
    }


def stolen_seconds() -> float:
    """CPU seconds since boot that a hypervisor ran somebody else while this machine had work; 0 where unknown."""
    values = (_read(Path("/proc/stat")) or "").partition("\n")[0].split()
    return int(values[8]) / os.sysconf("SC_CLK_TCK") if len(values) > 8 else 0.0


def involuntary_switches() -> int:
    """Times that this process was taken off a core since it began; 0 where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def device_slug(facts: dict[str, str]) -> str:
    """A folder name for a machine, e.g. 'amd-epyc-2-cores'."""
    name = re.sub(r"\(r\)|\(tm\)|cpu|processor|@.*", "", facts["cpu"].lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {facts['cores']} cores").strip("-")


def _cpu_name() -> str:
    text = _read(Path("/proc/cpuinfo")) or ""
    fields = dict(re.findall(r"^([^\t:\n]+?)\s*: ?(.*)$", text.partition("\n\n")[0], flags=re.MULTILINE))
    name = fields.get("model name") or platform.processor() or platform.machine()
    # Cloud vendors give one name to many generations; family and model tell them apart.
    generation = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return f"{name} ({', '.join(generation)})" if generation else name


def _clock_mhz() -> str:
    scaling = _read(_CPU / "scaling_cur_freq")
    if scaling:
        return str(int(scaling) // 1000)
    found = re.search(r"^cpu MHz\s*: ([\d.]+)", _read(Path("/proc/cpuinfo")) or "", flags=re.MULTILINE)
    return found.group(1) if found else "unknown"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
