"""The figures of a validation: predicted against measured, and errors over predicted latency."""

from __future__ import annotations

import html

from hwnas.report.figures import choice_lines
from hwnas.report.plots import Figure, bars, diagonal, layout, points
from hwnas.report.wording import interval, ms, share
from hwnas.validation import NetworkResult, TableValidation

# How networks were drawn -> how they are shown.
MARKERS = {
    "uniform": {"symbol": "circle", "size": 9, "color": "--predicted"},
    "spread": {"symbol": "diamond", "size": 10, "color": "--measured"},
    "searched": {"symbol": "triangle-up", "size": 10, "color": "--limit"},
}


def agreement_figure(result: TableValidation) -> Figure | None:
    """Predicted against measured latency, with the diagonal and a band of +-5 %; None where nothing was measured."""
    rows = result.measured
    if not rows:
        return None
    latencies = [row.predicted_ms for row in rows] + [row.measured_ms for row in rows if row.measured_ms is not None]
    traces = diagonal(latencies)
    for drawn, marker in MARKERS.items():
        chosen = [row for row in rows if row.drawn == drawn]
        if chosen:
            traces.append(
                points(
                    f"{drawn} networks",
                    [row.measured_ms for row in chosen],
                    [row.predicted_ms for row in chosen],
                    [network_text(row) for row in chosen],
                    marker=marker,
                    error_x=bars(
                        [(row.measured_ms, row.measured_low_ms, row.measured_high_ms) for row in chosen], "--faint"
                    ),
                    error_y=bars([(row.predicted_ms, row.low_ms, row.high_ms) for row in chosen], "--faint"),
                )
            )
    return {"data": traces, "layout": layout("Measured latency (ms)", "Predicted latency (ms)")}


def residual_figure(result: TableValidation) -> Figure | None:
    """Errors in percent over predicted latency, with the noise floor as a band; None where nothing was measured."""
    rows = result.measured
    if result.agreement is None or not rows:
        return None
    latencies = [row.predicted_ms for row in rows]
    ends = [0.9 * min(latencies), 1.1 * max(latencies)]
    line = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "x": ends}
    traces: list[Figure] = []
    floor = result.agreement.noise_floor
    if floor is not None:
        traces += [
            line | {"y": [-100 * floor] * 2, "line": {"width": 0}, "showlegend": False},
            line
            | {
                "y": [100 * floor] * 2,
                "line": {"width": 0},
                "fill": "tonexty",
                "fillcolor": "--band",
                "name": "noise floor",
            },
        ]
    traces.append(line | {"y": [0, 0], "name": "no error", "line": {"width": 1.5, "dash": "dot", "color": "--muted"}})
    for drawn, marker in MARKERS.items():
        chosen = [row for row in rows if row.drawn == drawn]
        if chosen:
            traces.append(
                points(
                    f"{drawn} networks",
                    [row.predicted_ms for row in chosen],
                    [100 * (row.error or 0.0) for row in chosen],
                    [network_text(row) for row in chosen],
                    marker=marker,
                )
            )
    return {"data": traces, "layout": layout("Predicted latency (ms)", "Error (%)")}


def network_text(row: NetworkResult) -> str:
    """The hover text of a network: its choices in words, its numbers with units."""
    again = f", again {ms(row.again_ms)}" if row.again_ms is not None else ""
    return "<br>".join(
        [
            *(f"<b>{line}</b>" for line in [html.escape(row.arch, quote=False)]),
            *choice_lines(row.choice),
            f"predicted {interval(row.predicted_ms, row.low_ms, row.high_ms)}",
            f"measured {interval(row.measured_ms, row.measured_low_ms, row.measured_high_ms)}{again}",
            f"error {share(row.error, sign=True)}",
        ]
    )
