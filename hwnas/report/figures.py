"""The figures of a run's report. Hover texts are read as HTML by plotly: all that comes from a run is escaped."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from hwnas.report.deployable import outside
from hwnas.report.plots import Figure, bars, diagonal, layout, points
from hwnas.report.summary import LATENCY_LIMIT, Candidate, NetworkRow, RunSummary
from hwnas.report.wording import NOTHING, count, interval, ms, share, significant
from hwnas.space import Option


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
            points(
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
    for name, marker, chosen in (
        (
            "measured",
            {"symbol": "diamond", "size": 10, "color": "--measured"},
            [r for r in measured if r.verdict.deployable is not False],
        ),
        (
            "not deployable, measured",
            {"symbol": "x", "size": 11, "color": "--limit"},
            [r for r in measured if r.verdict.deployable is False],
        ),
    ):
        if chosen:
            traces.append(
                points(
                    name,
                    [row.measured_ms for row in chosen],
                    [row.accuracy for row in chosen],
                    [network_text(row) for row in chosen],
                    marker=marker,
                    error_x=_measured_interval(chosen),
                )
            )
    if not traces:
        return None
    shown = layout("Latency (ms)", "Accuracy (%)")
    limit = summary.limits.get(LATENCY_LIMIT)
    if limit is not None:
        shown["shapes"] = [
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
        shown["annotations"] = [
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
    return {"data": traces, "layout": shown}


def agreement_figure(summary: RunSummary) -> Figure | None:
    """Predicted against measured latency, with the diagonal and a band of +-5 %; None where nothing was measured."""
    rows = [row for row in summary.networks if row.measured_ms is not None]
    if not rows:
        return None
    latencies = [row.predicted_ms for row in rows] + [row.measured_ms for row in rows if row.measured_ms is not None]
    traces = [
        *diagonal(latencies),
        _predicted(rows, x=[row.measured_ms for row in rows], y=[row.predicted_ms for row in rows], vertical=True)
        | {"name": "networks", "error_x": _measured_interval(rows)},
    ]
    return {"data": traces, "layout": layout("Measured latency (ms)", "Predicted latency (ms)")}


def score_figures(summary: RunSummary) -> dict[str, Figure]:
    """Score name -> figure of the score against predicted latency, of every candidate that has it."""
    exported = {row.arch: row for row in summary.networks}
    figures = {}
    for name in sorted({name for one in summary.candidates for name in one.scores}):
        scored = [one for one in summary.candidates if name in one.scores]
        traces = [
            points(
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
        figures[name] = {"data": traces, "layout": layout("Predicted latency (ms)", html.escape(name, quote=False))}
    return figures


def network_text(row: NetworkRow) -> str:
    """The hover text of an exported network: its choices in words, its numbers with units."""
    error = NOTHING if row.error is None else share(row.error, sign=True)
    measured = interval(row.measured_ms, row.measured_low_ms, row.measured_high_ms)
    return "<br>".join(
        [
            f"<b>{html.escape(row.name, quote=False)}</b>",
            *choice_lines(row.choice),
            f"accuracy {row.accuracy:.1f} % (validation {row.valid_accuracy:.1f} %)",
            f"predicted {interval(row.predicted_ms, row.predicted_low_ms, row.predicted_high_ms)}",
            f"measured {measured}, error {error}" if row.refused is None else "not measured",
            *([outside(row.outside_interval)] if row.outside_interval else []),
            *([f"<b>not deployable</b>: {row.verdict.reason}"] if row.verdict.deployable is False else []),
            f"{count(row.macs)} MACs, {count(row.params)} parameters",
        ]
    )


def choice_lines(choice: Mapping[str, Option]) -> list[str]:
    """An architecture's choices in words, for a hover text."""
    choices = " · ".join(f"{slot} {option}" for slot, option in choice.items())
    return [html.escape(line, quote=False) for line in textwrap.wrap(choices, 56)]


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


def _predicted(rows: Sequence[NetworkRow], x: list[Any], y: list[Any], vertical: bool = False) -> Figure:
    reach = bars(
        [(row.predicted_ms, row.predicted_low_ms, row.predicted_high_ms) for row in rows],
        "--predicted",
    )
    return points(
        "predicted",
        x,
        y,
        [network_text(row) for row in rows],
        marker={"symbol": "circle-open", "size": 12, "color": "--predicted", "line": {"width": 2}},
        **{"error_y" if vertical else "error_x": reach},
    )


def _measured_interval(rows: Sequence[NetworkRow]) -> Figure:
    return bars([(row.measured_ms, row.measured_low_ms, row.measured_high_ms) for row in rows], "--measured")
