"""May a file be called deployable? If it keeps every limit of its recipe, as measured on its target.

A measurement outside of its prediction interval breaks no limit (one in ten is, of 90% intervals that are right): it is
marked, and says that the latency table should be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """`deployable` is None where nobody knows; `reason` is why not, or why that is not known."""

    deployable: bool | None
    reason: str | None


def judge(within_limit: bool | None, within_drop: bool, unknown: str | None) -> Verdict:
    """The verdict on a file.

    `within_limit` is None without a latency limit or a measurement, `unknown` why the file was not measured or checked.
    """
    broken = [] if within_limit is not False else ["over the latency limit, as measured"]
    broken += [] if within_drop else ["loses more accuracy than quantise.max_drop allows"]
    if broken:
        return Verdict(False, " and ".join(broken))
    return Verdict(None if unknown else True, unknown)


def beside_interval(measured_ms: float | None, low_ms: float | None, high_ms: float | None) -> str | None:
    """ "slower" or "faster" than the interval of its prediction; None inside, and where one of them is not known."""
    if measured_ms is None or low_ms is None or high_ms is None or low_ms <= measured_ms <= high_ms:
        return None
    return "slower" if measured_ms > high_ms else "faster"


def outside(beside: str) -> str:
    """What is said of a file that is "slower" or "faster"."""
    return f"{beside} than its prediction interval"
