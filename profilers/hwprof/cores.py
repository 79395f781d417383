"""Big and small cores: where a processor has several kinds, the one that is measured must not be left to chance.

The scheduler starts a process on any core and moves it later; a network takes three times longer on a small one. So
the agent stays on the biggest cores, as many as the target has threads, which is where an app that computes ends up.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

# What this process might use when it started.
ALLOWED = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
CPUS = Path("/sys/devices/system/cpu")
# Cores that may clock a few percent higher than their neighbours are not another kind.
UNLIKE = 1.2


def biggest(threads: int, cores: Iterable[int] = ALLOWED, root: Path = CPUS) -> tuple[int, ...]:
    """The `threads` biggest of the cores; empty if all are of one kind, or as many as there are threads."""
    cores = tuple(cores)
    size = _sizes(cores, root)
    if not size or max(size.values()) < UNLIKE * min(size.values()) or threads >= len(cores):
        return ()
    # Of equal ones the last: interrupts and the system's own work prefer the first.
    return tuple(sorted(sorted(cores, key=lambda core: (size[core], core))[-threads:]))


def pin(threads: int) -> None:
    """Keep this process, and the threads that it starts from now on, on the biggest cores; see `pinned`."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a core that is switched off; then nothing is pinned, which `pinned` tells
            os.sched_setaffinity(0, biggest(threads) or ALLOWED)


def pinned() -> tuple[int, ...]:
    """The cores that this process keeps to, if those are fewer than it might use."""
    now = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ALLOWED
    return () if now == ALLOWED else tuple(sorted(now))


def _sizes(cores: Iterable[int], root: Path) -> dict[int, int]:
    """Capacity of every core, or its highest clock, whichever the kernel knows of all of them; else empty."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        try:
            sizes = {core: int((root / f"cpu{core}" / name).read_text()) for core in cores}
        except (OSError, ValueError):
            continue
        if sizes and min(sizes.values()) > 0:
            return sizes
    return {}
