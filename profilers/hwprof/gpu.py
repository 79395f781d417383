"""What an NVIDIA GPU is and how it fares, as `nvidia-smi` tells it: limits, clocks, power, heat, and what slowed it.

Its whole report is read (`nvidia-smi -q -x`), because a query of single fields fails on a driver that lacks one of
them, and they were renamed over the years. Where there is no nvidia-smi, or it says nothing useful, nothing is known:
that is no error, a measurement stands without it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xml.etree import ElementTree

# The hardware's own brakes halve the clock or worse. What the driver does by itself (sw_power_cap, sw_thermal_slowdown)
# is how GPUs run under load: it is recorded, and the limits of spread and drift decide.
BRAKES = ("hw_thermal_slowdown", "hw_power_brake_slowdown")
SLOWDOWNS = (*BRAKES, "sw_thermal_slowdown", "sw_power_cap")
BRAKED_SHARE = 0.01  # of the time of a group; less does not move a median

_SECONDS = 20.0
# fact -> where drivers have it, newest first
_IDENTITY = {
    "gpu_mig": ("mig_mode/current_mig",),
    "gpu_ecc": ("ecc_mode/current_ecc",),
    "gpu_application_mhz": ("applications_clocks/graphics_clock",),
}
_POWER_LIMIT = (
    "gpu_power_readings/current_power_limit",
    "gpu_power_readings/power_limit",
    "power_readings/enforced_power_limit",
    "power_readings/power_limit",
)
_STATE = {
    "gpu_sm_mhz": ("clocks/sm_clock",),
    "gpu_memory_mhz": ("clocks/mem_clock",),
    "gpu_power_w": (
        "gpu_power_readings/instant_power_draw",
        "gpu_power_readings/power_draw",
        "power_readings/power_draw",
    ),
    "gpu_temperature_c": ("temperature/gpu_temp",),
    "gpu_pstate": ("performance_state",),
    "gpu_persistence": ("persistence_mode",),
    "gpu_serial": ("serial", "uuid"),
}


@dataclass(frozen=True)
class GpuFacts:
    """`identity`: what changes latency and is the same on every GPU of a kind; `state`: what varies, and the serial.

    `slowed_us` are microseconds that each reason has slowed the GPU since its driver was loaded, where the driver
    counts them; `active` the reasons that did at the moment. `seconds` is when that was. All empty: nothing is known.
    """

    identity: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)
    slowed_us: Mapping[str, int] = field(default_factory=dict)
    active: frozenset[str] = frozenset()
    seconds: float = 0.0


def read_gpu(accelerator: str) -> GpuFacts:
    """What is known now of the GPU that a runtime names as its accelerator; nothing if it names none."""
    program = shutil.which("nvidia-smi") if accelerator else None
    if program is None:
        return GpuFacts()
    try:
        ran = subprocess.run([program, "-q", "-x"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return GpuFacts()
    return parse_report(ran.stdout, accelerator, os.environ.get("CUDA_VISIBLE_DEVICES", ""), time.monotonic())


def parse_report(report: bytes, accelerator: str, visible: str = "", seconds: float = 0.0) -> GpuFacts:
    """The facts of one GPU out of nvidia-smi's report in XML; nothing if it is not in there."""
    from xml.etree import ElementTree  # not every Python has its parser; those on phones need none

    try:
        root = ElementTree.fromstring(report)
    except (ElementTree.ParseError, ValueError, LookupError):  # cut off, or of an encoding that there is not
        return GpuFacts()
    gpu = _chosen(root.findall("gpu"), accelerator, visible)
    if gpu is None:
        return GpuFacts()
    identity = {"gpu_driver": _text(root, ("driver_version",))}
    identity.update({fact: _text(gpu, places) for fact, places in _IDENTITY.items()})
    if "laptop" not in accelerator.lower():  # their limit moves with the load of the processor beside them
        identity["gpu_power_limit_w"] = _text(gpu, _POWER_LIMIT)
    state = {fact: _text(gpu, places) for fact, places in _STATE.items()}
    reasons = [(_reason(entry.tag), (entry.text or "").strip()) for entry in gpu.iter() if _reason(entry.tag)]
    return GpuFacts(
        {fact: text for fact, text in identity.items() if text},
        {fact: text for fact, text in state.items() if text},
        {reason: int(text.split()[0]) for reason, text in reasons if re.match(r"\d+ us$", text)},
        frozenset(reason for reason, text in reasons if text == "Active"),
        seconds,
    )


def during(before: GpuFacts, after: GpuFacts) -> dict[str, str]:
    """The state of a GPU over a measurement, "before -> after" where it changed, and what slowed it for how long."""
    state = {fact: _change(before.state.get(fact, text), text) for fact, text in after.state.items()}
    if state:
        slowed = [f"{reason} {share:.0%}" for reason, share in _slowed(before, after).items()]
        state["gpu_slowed"] = ", ".join(slowed) or "no"
    return state


def braked(before: GpuFacts, after: GpuFacts) -> str | None:
    """Why numbers measured between two readings must not enter a table; None if they may."""
    found = [reason for reason, share in _slowed(before, after).items() if reason in BRAKES and share > BRAKED_SHARE]
    if not found:
        return None
    temperature = after.state.get("gpu_temperature_c", "unknown")
    return (
        f"the GPU braked ({', '.join(found)}, {temperature} degrees): see to its cooling and its power supply, or "
        "lower its clock with nvidia-smi --lock-gpu-clocks"
    )


def _slowed(before: GpuFacts, after: GpuFacts) -> dict[str, float]:
    """The share of the time that each reason slowed the GPU; 1 where it did at either end and nobody counts."""
    seconds = max(after.seconds - before.seconds, 1e-3)
    shares = {}
    for reason in SLOWDOWNS:
        if reason in before.slowed_us and reason in after.slowed_us:
            share = min(1.0, (after.slowed_us[reason] - before.slowed_us[reason]) * 1e-6 / seconds)
        else:
            share = float(reason in before.active | after.active)
        if share > 0:
            shares[reason] = share
    return shares


def _chosen(gpus: Sequence[ElementTree.Element], accelerator: str, visible: str) -> ElementTree.Element | None:
    """The GPU of that name, the one that CUDA_VISIBLE_DEVICES names first if there are several."""
    # whatever stands behind the name ("NVIDIA A10, compute capability 8.6"), it is no longer name ("NVIDIA A100")
    named = [gpu for gpu in gpus if re.match(re.escape(gpu.findtext("product_name", "")) + r"(?![\w-])", accelerator)]
    first = visible.split(",")[0].strip()
    if first.isdigit() and int(first) < len(gpus) and gpus[int(first)] in named:
        return gpus[int(first)]
    by_serial = [gpu for gpu in named if first and gpu.findtext("uuid", "").startswith(first)]
    return next(iter([*by_serial, *named]), None)


def _text(element: ElementTree.Element, places: Sequence[str]) -> str:
    """The first of the places that says something, numbers without their unit; "" if none does."""
    for place in places:
        text = element.findtext(place, "").strip()
        number = re.match(r"([\d.]+) (?:MHz|W|C)$", text)
        if number:
            return re.sub(r"\.0*$", "", number.group(1))
        if text and not re.match(r"\[?(N/A|Not Supported|Unknown Error|Requested functionality|GPU requires)", text):
            return text
    return ""


def _reason(tag: str) -> str:
    """The name of a slowdown in an entry's tag, as drivers of all ages have it; "" for other entries."""
    found = re.match(r"clocks_(?:event|throttle)_reasons?_(?:counters_)?(\w+)$", tag)
    name = found.group(1).replace("_therm_", "_thermal_") if found else ""
    return "hw_power_brake_slowdown" if name == "hw_power_brake" else name


def _change(before: str, after: str) -> str:
    return after if before == after else f"{before} -> {after}"
