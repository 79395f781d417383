"""What machine this is: what never changes under a table (identity) and what should be known about it (state)."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from hwprof import android, cooling, cores
from hwprof.emulator import emulated


def identity() -> dict[str, str]:
    """Facts that make two measurements comparable: processor, cores, instruction set, operating system.

    "pinned_cores" are there where the agent keeps to some of the cores, "emulated" on an emulator.
    """
    cpu, machine = _cpu_name(), platform.machine()
    facts = {
        "cpu": cpu,
        "cores": str(len(cores.ALLOWED) or os.cpu_count() or 1),
        "pinned_cores": ",".join(map(str, cores.pinned())),
        "machine": machine,
        "system": platform.system(),
        "governor": _read(_clock_folder() / "scaling_governor") or "unknown",
        "emulated": emulated(machine, cpu) or "",
        **android.identity(),
    }
    return {name: value for name, value in facts.items() if value}


def state() -> dict[str, str]:
    """Facts that vary: kernel, Python, load, clock, heat, and how much of the CPU the hypervisor gave to others."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
        "clock_mhz": _clock_mhz(),
        "stolen_seconds": f"{stolen_seconds():.2f}",
        **cooling.state(),
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
    """A folder name for a machine, e.g. 'amd-epyc-2-cores', or for the accelerator that computes: 'nvidia-h200'."""
    accelerator = re.sub(r"[^a-z0-9]+", "-", facts.get("accelerator", "").lower().partition(",")[0]).strip("-")
    if accelerator:
        return accelerator
    name = re.sub(r"\(r\)|\(tm\)|cpu|processor|@.*", "", facts["cpu"].lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {facts['cores']} cores").strip("-")


def _cpu_name() -> str:
    text = _read(Path("/proc/cpuinfo")) or ""
    fields = dict(re.findall(r"^([^\t:\n]+?)\s*: ?(.*)$", text.partition("\n\n")[0], flags=re.MULTILINE))
    board = (_read(Path("/proc/device-tree/model")) or "").rstrip("\0")
    known = fields.get("model name") or android.processor() or board or platform.processor()
    name = known or platform.machine()
    # Cloud vendors give one name to many generations; family and model tell them apart.
    generation = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    if not known:  # Arm's processors have numbers only
        generation = sorted({f"CPU part {part}" for part in re.findall(r"^CPU part\s*: (\w+)$", text, re.MULTILINE)})
    return f"{name} ({', '.join(generation)})" if generation else name


def _clock_mhz() -> str:
    scaling = _read(_clock_folder() / "scaling_cur_freq")
    if scaling:
        return str(int(scaling) // 1000)
    found = re.search(r"^cpu MHz\s*: ([\d.]+)", _read(Path("/proc/cpuinfo")) or "", flags=re.MULTILINE)
    return found.group(1) if found else "unknown"


def _clock_folder() -> Path:
    """Where the kernel tells of the clock of the core that is measured on."""
    return cores.CPUS / f"cpu{(*cores.pinned(), 0)[0]}" / "cpufreq"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
