"""The figures of the report as plotly dictionaries: data and layout, colours left to the page.

A colour here is the name of a CSS variable of `page.css`; `page.js` puts the value in, so that light and dark are one
figure. Hover texts are read as HTML by plotly: all that comes from a run is escaped.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import Any

from hwnas.report.summary import LATENCY_LIMIT, Candidate, NetworkRow, RunSummary
from hwnas.report.wording import NOTHING, count, ms, share, significant

Figure = dict[str, Any]
TOLERANCE = 0.05
"""Half the width of the band in the figure of predicted against measured, a fraction."""


def front_figure(summary: RunSummary) -> Figure | None:
    """Accuracy in percent against latency in ms: predicted, measured, the front as a step, what else was evaluated.

    None where there is nothing to show.
    """
    rows = sorted(summary.networks, key=lambda row: row.predicted_ms)
    measured = [row for row in rows if row.measured_ms is not None]
    exported = {row.arch for row in rows}
    others = [one for one in summary.candidates if one.valid_accuracy is not None and one.arch not in exported]
    traces = []
    if others:
        traces.append(
            _points(
                "evaluated (validation accuracy)",
                [one.predicted_ms for one in others],
                [one.valid_accuracy for one in others],
                [candidate_text(one) for one in others],
                marker={"symbol": "circle", "size": 6, "color": "--faint"},
            )
        )
    if rows:
        best = [max(row.accuracy for row in rows[: n + 1]) for n in range(len(rows))]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best at this predicted latency",
                "x": [row.predicted_ms for row in rows],
                "y": best,
                "line": {"shape": "hv", "width": 1.5, "dash": "dot", "color": "--predicted"},
                "hoverinfo": "skip",
            }
        )
        traces.append(_predicted(rows, x=[row.predicted_ms for row in rows], y=[row.accuracy for row in rows]))
    if measured:
        traces.append(
            _points(
                "measured",
                [row.measured_ms for row in measured],
                [row.accuracy for row in measured],
                [network_text(row) for row in measured],
                marker={"symbol": "diamond", "size": 10, "color": "--measured"},
                error_x=_measured_interval(measured),
            )
        )
    if not traces:
        return None
    layout = _layout("Latency (ms)", "Accuracy (%)")
    limit = summary.limits.get(LATENCY_LIMIT)
    if limit is not None:
        layout["shapes"] = [
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": limit,
                "x1": limit,
                "y0": 0,
                "y1": 1,
                "line": {"color": "--limit", "width": 1.5, "dash": "dash"},
            }
        ]
        layout["annotations"] = [
            {
                "text": f"limit {ms(limit)}",
                "x": limit,
                "y": 0,
                "yref": "paper",
                "xanchor": "right",
                "yanchor": "bottom",
                "textangle": -90,
                "showarrow": False,
                "font": {"color": "--limit"},
            }
        ]
    return {"data": traces, "layout": layout}


def agreement_figure(summary: RunSummary) -> Figure | None:
    """Predicted against measured latency, with the diagonal and a band of +-5 %; None where nothing was measured."""
    rows = [row for row in summary.networks if row.measured_ms is not None]
    if not rows:
        return None
    latencies = [row.predicted_ms for row in rows] + [row.measured_ms for row in rows if row.measured_ms is not None]
    ends = [0.9 * min(latencies), 1.1 * max(latencies)]
    band = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "x": ends, "line": {"width": 0}}
    traces = [
        band | {"y": [(1 - TOLERANCE) * end for end in ends], "showlegend": False},
        band
        | {
            "y": [(1 + TOLERANCE) * end for end in ends],
            "fill": "tonexty",
            "fillcolor": "--band",
            "name": f"±{100 * TOLERANCE:.0f} %",
        },
        band | {"y": ends, "name": "predicted = measured", "line": {"width": 1.5, "dash": "dot", "color": "--muted"}},
        _predicted(rows, x=[row.measured_ms for row in rows], y=[row.predicted_ms for row in rows], vertical=True)
        | {"name": "networks", "error_x": _measured_interval(rows)},
    ]
    return {"data": traces, "layout": _layout("Measured latency (ms)", "Predicted latency (ms)")}


def score_figures(summary: RunSummary) -> dict[str, Figure]:
    """Score name -> figure of the score against predicted latency, of every candidate that has it."""
    exported = {row.arch: row for row in summary.networks}
    figures = {}
    for name in sorted({name for one in summary.candidates for name in one.scores}):
        scored = [one for one in summary.candidates if name in one.scores]
        traces = [
            _points(
                label,
                [one.predicted_ms for one in chosen],
                [one.scores[name] for one in chosen],
                [network_text(exported[one.arch]) if one.arch in exported else candidate_text(one) for one in chosen],
                marker=marker,
            )
            for label, chosen, marker in (
                (
                    "evaluated",
                    [one for one in scored if one.arch not in exported],
                    {"symbol": "circle", "size": 6, "color": "--faint"},
                ),
                (
                    "on the front",
                    [one for one in scored if one.arch in exported],
                    {"symbol": "diamond", "size": 10, "color": "--predicted"},
                ),
            )
            if chosen
        ]
        figures[name] = {"data": traces, "layout": _layout("Predicted latency (ms)", html.escape(name, quote=False))}
    return figures


def network_text(row: NetworkRow) -> str:
    """The hover text of an exported network: its choices in words, its numbers with units."""
    error = NOTHING if row.error is None else share(row.error, sign=True)
    measured = interval(row.measured_ms, row.measured_low_ms, row.measured_high_ms)
    choices = " · ".join(f"{slot} {option}" for slot, option in row.choice.items())
    return "<br>".join(
        [
            f"<b>{html.escape(row.name, quote=False)}</b>",
            *(html.escape(line, quote=False) for line in textwrap.wrap(choices, 56)),
            f"accuracy {row.accuracy:.1f} % (validation {row.valid_accuracy:.1f} %)",
            f"predicted {interval(row.predicted_ms, row.predicted_low_ms, row.predicted_high_ms)}",
            f"measured {measured}, error {error}" if row.refused is None else "not measured",
            f"{count(row.macs)} MACs, {count(row.params)} parameters",
        ]
    )


def candidate_text(one: Candidate) -> str:
    """The hover text of an architecture that is not on the front."""
    accuracy = "not trained" if one.valid_accuracy is None else f"validation accuracy {one.valid_accuracy:.1f} %"
    return "<br>".join(
        [
            *(f"<b>{html.escape(line, quote=False)}</b>" for line in textwrap.wrap(one.arch, 56)),
            accuracy,
            f"predicted {ms(one.predicted_ms)}",
            *(f"{html.escape(name, quote=False)} {significant(value)}" for name, value in one.scores.items()),
        ]
    )


def interval(middle: float | None, low: float | None, high: float | None) -> str:
    """'1.23 ms (1.20 to 1.26)': a latency with its interval, as far as there is one."""
    bounds = "" if low is None or high is None else f" ({significant(low)} to {significant(high)})"
    return ms(middle) + bounds


def _predicted(rows: Sequence[NetworkRow], x: list[Any], y: list[Any], vertical: bool = False) -> Figure:
    bars = _bars(
        [(row.predicted_ms, row.predicted_low_ms, row.predicted_high_ms) for row in rows],
        "--predicted",
    )
    return _points(
        "predicted",
        x,
        y,
        [network_text(row) for row in rows],
        marker={"symbol": "circle-open", "size": 12, "color": "--predicted", "line": {"width": 2}},
        **{"error_y" if vertical else "error_x": bars},
    )


def _measured_interval(rows: Sequence[NetworkRow]) -> Figure:
    return _bars([(row.measured_ms, row.measured_low_ms, row.measured_high_ms) for row in rows], "--measured")


def _bars(intervals: Sequence[tuple[float | None, float | None, float | None]], color: str) -> Figure:
    def reach(middle: float | None, bound: float | None, sign: int) -> float:
        return 0.0 if middle is None or bound is None else max(0.0, sign * (bound - middle))

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(middle, high, +1) for middle, _, high in intervals],
        "arrayminus": [reach(middle, low, -1) for middle, low, _ in intervals],
        "color": color,
        "thickness": 1.5,
        "width": 3,
    }


def _points(name: str, x: list[Any], y: list[Any], texts: list[str], **style: Any) -> Figure:
    points = {"type": "scatter", "mode": "markers", "name": name, "x": x, "y": y}
    return points | {"hovertext": texts, "hoverinfo": "text"} | style


def _layout(x_title: str, y_title: str) -> Figure:
    axis = {"gridcolor": "--grid", "linecolor": "--grid", "zeroline": False, "automargin": True, "ticks": ""}
    return {
        "xaxis": axis | {"title": {"text": x_title}},
        "yaxis": axis | {"title": {"text": y_title}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 8, "r": 12, "t": 36, "b": 8},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": "--card", "bordercolor": "--grid", "font": {"color": "--ink"}},
        "paper_bgcolor": "--card",
        "plot_bgcolor": "--card",
        "font": {"color": "--ink", "size": 13},
    }
