"""Heat: what a device tells of its own, and a pause until it is as fast as it was when it was cool.

A phone or a board without a fan slows down after some seconds of work. Ratios to anchors hardly change with that, but
nobody wants the latencies of an overheated device. So before a group the anchors are timed: they must take at most
TOLERANCE longer than in their reference.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from hwprof import android
from hwprof.errors import MeasurementError
from hwprof.target import Plan
from hwprof.timing import Clock, Session, geometric_mean, time_group

TOLERANCE = 0.03
PAUSE_SECONDS = 5.0
SYSTEM = Path("/sys/class")
# Kernels have no rule for the names of sensors; these are near what computes.
_PROCESSOR = re.compile(r"cpu|soc|pkg|core|cluster|big|gold|prime|tsens", re.IGNORECASE)


def cool_down(
    anchors: Mapping[str, Session],
    reference_ms: Mapping[str, float],
    plan: Plan,
    clock: Clock,
    tell: Callable[[float], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Wait until the anchors are back at their reference, or for `plan.cool_down_seconds`; the seconds waited.

    `tell` is given, before every pause, how much longer the anchors take than in their reference (0.1: 10%). Raises
    MeasurementError on an anchor without a reference.
    """
    missing = sorted(set(anchors) - set(reference_ms))
    if missing or not all(reference_ms[name] > 0 for name in anchors):
        raise MeasurementError(f"cool-down needs a reference above 0 for every anchor: {', '.join(missing) or 'is 0'}")
    waited = 0.0
    while waited < plan.cool_down_seconds and (slower := _slower(anchors, reference_ms, plan, clock)) > TOLERANCE:
        tell(slower)
        pause = min(PAUSE_SECONDS, plan.cool_down_seconds - waited)
        sleep(pause)
        waited += pause
    return waited


def state(root: Path = SYSTEM) -> dict[str, str]:
    """Temperature of the processor and charge of the battery, as far as this process may read them."""
    celsius, charge = _temperature(root), _battery(root) or android.battery()
    facts = {"temperature_c": "" if celsius is None else f"{celsius:.1f}", "battery": charge}
    return {name: value for name, value in facts.items() if value}


def _slower(anchors: Mapping[str, Session], reference_ms: Mapping[str, float], plan: Plan, clock: Clock) -> float:
    # A few sweeps tell 3% apart and warm nothing up.
    group = time_group({}, anchors, replace(plan, sweeps=3, max_sweeps=3), clock=clock)
    now = {name: statistics.median(visit.ms for visit in group.visits[name]) for name in anchors}
    return geometric_mean([now[name] / reference_ms[name] for name in anchors]) - 1


def _temperature(root: Path) -> float | None:
    """Degrees Celsius of the hottest sensor of the processor, or of all sensors if none is named so."""
    named: list[float] = []
    others: list[float] = []
    for zone in sorted(root.glob("thermal/thermal_zone*")):
        try:
            celsius = int(_read(zone / "temp")) / 1000
        except ValueError:  # a sensor that cannot be read now, or not by us
            continue
        if 0 < celsius < 150:
            (named if _PROCESSOR.search(_read(zone / "type")) else others).append(celsius)
    return max(named or others, default=None)


def _battery(root: Path) -> str:
    for supply in sorted(root.glob("power_supply/*")):
        if _read(supply / "type") == "Battery" and (charge := _read(supply / "capacity")):
            return f"{charge}%, {_read(supply / 'status').lower() or 'unknown'}"
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
