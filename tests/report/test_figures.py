from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hwnas.report.figures import Figure, agreement_figure, front_figure, network_text, score_figures
from hwnas.report.summary import NetworkRow, RunSummary


def trace(figure: Figure | None, name: str) -> dict[str, Any]:
    assert figure is not None
    (found,) = [one for one in figure["data"] if one.get("name", "").startswith(name)]
    return found


def test_the_front_shows_predicted_measured_and_the_rest(summary: RunSummary) -> None:
    figure = front_figure(summary)
    measured = [row for row in summary.networks if row.measured_ms is not None]
    assert trace(figure, "predicted")["x"] == [row.predicted_ms for row in summary.networks]
    assert trace(figure, "predicted")["y"] == [row.accuracy for row in summary.networks]
    assert trace(figure, "measured")["x"] == [row.measured_ms for row in measured if row.within_limit]
    assert trace(figure, "not deployable")["x"] == [row.measured_ms for row in measured if not row.within_limit]
    exported = {row.arch for row in summary.networks}
    others = [one for one in summary.candidates if one.arch not in exported and one.valid_accuracy is not None]
    assert trace(figure, "evaluated")["x"] == [one.predicted_ms for one in others]
    assert len(others) < len(summary.candidates) - len(exported), "the sample has candidates that were never trained"


def test_error_bars_reach_the_interval(summary: RunSummary) -> None:
    bars, row = trace(front_figure(summary), "measured")["error_x"], summary.networks[0]
    assert row.measured_ms is not None
    assert bars["symmetric"] is False
    assert row.measured_high_ms == pytest.approx(row.measured_ms + bars["array"][0])
    assert row.measured_low_ms == pytest.approx(row.measured_ms - bars["arrayminus"][0])


def test_a_missing_interval_is_no_bar(summary: RunSummary, row_of: Callable[..., NetworkRow]) -> None:
    row = row_of(0, measured_low_ms=None, measured_high_ms=None)
    bars = trace(front_figure(replace(summary, networks=(row,))), "measured")["error_x"]
    assert (bars["array"], bars["arrayminus"]) == ([0.0], [0.0])


def test_the_step_never_falls(summary: RunSummary, row_of: Callable[..., NetworkRow]) -> None:
    dominated = row_of(2, accuracy=50.0)
    step = trace(front_figure(replace(summary, networks=(row_of(3), dominated, row_of(0)))), "best")
    assert step["x"] == sorted(step["x"])
    assert step["y"] == sorted(step["y"])
    assert 50.0 not in step["y"]


@pytest.mark.parametrize(("limits", "lines"), [({"latency_ms": 1.45}, 1), ({"params": 1e6}, 0), ({}, 0)])
def test_a_latency_limit_is_a_vertical_line(summary: RunSummary, limits: dict[str, float], lines: int) -> None:
    figure = front_figure(replace(summary, limits=limits))
    assert figure is not None
    shapes = figure["layout"].get("shapes", [])
    assert [shape["x0"] for shape in shapes] == [1.45] * lines


def test_agreement_puts_measured_on_x(summary: RunSummary) -> None:
    networks = trace(agreement_figure(summary), "networks")
    measured = [row for row in summary.networks if row.measured_ms is not None]
    assert networks["x"] == [row.measured_ms for row in measured]
    assert networks["y"] == [row.predicted_ms for row in measured]


def test_the_band_is_five_percent(summary: RunSummary) -> None:
    figure = agreement_figure(summary)
    assert figure is not None
    low, high, diagonal = figure["data"][:3]
    assert diagonal["y"] == diagonal["x"]
    assert [y / x for x, y in zip(low["x"], low["y"], strict=True)] == pytest.approx([0.95, 0.95])
    assert [y / x for x, y in zip(high["x"], high["y"], strict=True)] == pytest.approx([1.05, 1.05])


def test_nothing_measured_is_no_figure(summary: RunSummary, row_of: Callable[..., NetworkRow]) -> None:
    row = row_of(1, measured_ms=None, refused="drift")
    assert agreement_figure(replace(summary, networks=(row,))) is None
    assert "not measured" in network_text(row)
    assert front_figure(replace(summary, networks=(), candidates=())) is None


def test_every_score_has_a_figure_with_every_candidate(summary: RunSummary) -> None:
    figures = score_figures(summary)
    assert list(figures) == ["naswot", "params"]
    for figure in figures.values():
        assert sum(len(one["x"]) for one in figure["data"]) == len(summary.candidates)
    assert score_figures(replace(summary, candidates=())) == {}


def test_hover_text_is_readable_and_escaped(row_of: Callable[..., NetworkRow]) -> None:
    text = network_text(row_of(1, name="<b>&", choice={"<i>slot": "<a href='x'>", "kernel": 5}))
    assert "kernel 5" in text
    assert "&lt;b&gt;&amp;" in text
    assert "<i>" not in text
    assert "<a" not in text
    many = network_text(row_of(1, choice={f"stage{n}.kernel": 3 for n in range(40)}))
    assert max(map(len, many.split("<br>"))) <= 80


def test_plotly_knows_every_property(summary: RunSummary) -> None:
    """Colours are CSS variables until the page draws, so they are replaced before plotly validates."""
    objects = pytest.importorskip("plotly.graph_objects")

    def coloured(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: coloured(item) for key, item in value.items()}
        if isinstance(value, list):
            return [coloured(item) for item in value]
        return "#123456" if isinstance(value, str) and value.startswith("--") else value

    for figure in (front_figure(summary), agreement_figure(summary), *score_figures(summary).values()):
        objects.Figure(coloured(figure))
    with pytest.raises(ValueError, match="sise"):
        objects.Figure({"data": [{"type": "scatter", "sise": 3}]})
