"""Numbers as people read them, and a run in one sentence: shared by the page and the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import fmean

from pydantic import JsonValue

from hwnas.report.summary import LATENCY_LIMIT, NetworkRow, RunSummary
from hwnas.space import Option

NOTHING = "–"


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, never in powers of ten: 0.0412, 1.20, 1235; a dash for None."""
    if value is None:
        return NOTHING
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded number: 9.996 is 10.0
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def ms(value: float | None) -> str:
    """Milliseconds to three significant digits, with the unit."""
    return NOTHING if value is None else f"{significant(value)} ms"


def interval(middle: float | None, low: float | None, high: float | None) -> str:
    """'1.23 ms (1.20 to 1.26)': a latency with its interval, as far as there is one."""
    bounds = "" if low is None or high is None else f" ({significant(low)} to {significant(high)})"
    return ms(middle) + bounds


def share(fraction: float | None, sign: bool = False) -> str:
    """A fraction in percent: 0.0191 is '1.9 %'."""
    return NOTHING if fraction is None else f"{100 * fraction:{'+' if sign else ''}.1f} %"


def count(value: int | None) -> str:
    """How many, with the decimal prefixes of the field: 950, 12.3 k, 4.56 M, 1.20 G."""
    if value is None:
        return NOTHING
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:  # what three digits round up to it
            return f"{significant(value / factor)} {prefix}"
    return str(value)


def size(size_bytes: int) -> str:
    """Bytes with decimal prefixes: '830 B', '12.3 kB', '4.56 MB'."""
    text = count(size_bytes)
    return f"{text}B" if " " in text else f"{text} B"


def seconds(value: float) -> str:
    """A duration: '3.2 s', '4 min 05 s', '2 h 10 min'."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def span(low: float, high: float) -> str:
    """A range of milliseconds; one number where both ends read alike."""
    return ms(low) if significant(low) == significant(high) else f"{significant(low)} to {ms(high)}"


def target_line(target: Mapping[str, Option], created: str) -> str:
    """The first facts of a target and when it was measured, in one line."""
    named = list(target.items())[:6]
    return " · ".join([*(value if isinstance(value, str) else f"{key} {value}" for key, value in named), created])


def plain(value: JsonValue) -> str:
    """A setting as people read it: text as it is, whole numbers with commas, all else as JSON."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def mean_error(summary: RunSummary) -> float | None:
    """Mean of |predicted / measured - 1| over the measured networks, a fraction; None where none was measured."""
    errors = [abs(row.error) for row in summary.networks if row.error is not None]
    return fmean(errors) if errors else None


def best(summary: RunSummary) -> NetworkRow | None:
    """The most accurate network of those measured within the limit; where there are none, of those that break none."""
    good = [row for row in summary.networks if row.verdict.deployable is not False]
    kept = [row for row in good if row.within_limit] or good or summary.networks
    return max(kept, key=lambda row: row.accuracy, default=None)


def verdict(summary: RunSummary) -> str:
    """The run in one line: how many networks, how accurate, how fast, and whether predicted is measured."""
    rows, winner = summary.networks, best(summary)
    if winner is None:
        return f"No network on the front: {len(summary.candidates)} evaluated, none exported."
    measured = [row.measured_ms for row in rows if row.measured_ms is not None]
    latencies, kind = (measured, "measured") if measured else ([row.predicted_ms for row in rows], "predicted")
    networks = "1 network" if len(rows) == 1 else f"{len(rows)} networks"
    limit_ms = summary.limits.get(LATENCY_LIMIT)
    limit = "the limit" if limit_ms is None else f"the limit of {ms(limit_ms)}"
    over = sum(row.within_limit is False for row in rows)
    parts = [
        f"{networks} on the front: {'' if len(rows) == 1 else 'up to '}{winner.accuracy:.1f} % accurate"
        + (f" within {limit}" if winner.within_limit else ""),
        f"{span(min(latencies), max(latencies))} {kind}",
    ]
    if over:
        parts.append(f"{over} over {'it' if winner.within_limit else limit}: not deployable")
    if lossy := sum(not row.within_drop for row in rows):
        parts.append(f"{lossy} beyond the accuracy drop: not deployable")
    error = mean_error(summary)
    if error is None:
        parts.append("none measured on the target")
    else:
        parts.append(f"predictions off by {share(error)} on average")
        if len(measured) < len(rows):
            parts.append(f"{len(rows) - len(measured)} not measured")
        if out := sum(row.outside_interval is not None for row in rows):
            parts.append(f"{out} outside the prediction interval")
    if summary.table.noise_floor is not None:
        parts.append(f"noise floor {share(summary.table.noise_floor)}")
    return ", ".join(parts) + "."


def silent_scores(without_vote: Mapping[str, float]) -> str:
    """What to say of scores that were not combined; nothing if all were."""
    if not without_vote:
        return ""
    named = ", ".join(f"{name} ({agreement:+.2f})" for name, agreement in without_vote.items())
    return f"Without a vote, since on these networks they disagree with what the scores have in common: {named}."
