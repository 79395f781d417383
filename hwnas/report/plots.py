"""What figures are put together from, as plotly dictionaries: data and layout, colours left to the page.

A colour here is the name of a CSS variable of `page.css`; `page.js` puts the value in, so that light and dark are one
figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]
TOLERANCE = 0.05
"""Half the width of the band in the figure of predicted against measured, a fraction."""


def diagonal(latencies: Sequence[float]) -> list[Figure]:
    """Where predicted is measured, over the range of the latencies, with the edges of +-5 % (low, high, line)."""
    ends = [0.9 * min(latencies), 1.1 * max(latencies)]
    band = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "x": ends, "line": {"width": 0}}
    return [
        band | {"y": [(1 - TOLERANCE) * end for end in ends], "showlegend": False},
        band
        | {
            "y": [(1 + TOLERANCE) * end for end in ends],
            "fill": "tonexty",
            "fillcolor": "--band",
            "name": f"±{100 * TOLERANCE:.0f} %",
        },
        band | {"y": ends, "name": "predicted = measured", "line": {"width": 1.5, "dash": "dot", "color": "--muted"}},
    ]


def bars(intervals: Sequence[tuple[float | None, float | None, float | None]], color: str) -> Figure:
    """Error bars of (middle, low, high); none where there is no such bound."""

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


def points(name: str, x: list[Any], y: list[Any], texts: list[str], **style: Any) -> Figure:
    """Markers with hover texts."""
    points = {"type": "scatter", "mode": "markers", "name": name, "x": x, "y": y}
    return points | {"hovertext": texts, "hoverinfo": "text"} | style


def layout(x_title: str, y_title: str) -> Figure:
    """The look that all figures share."""
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
