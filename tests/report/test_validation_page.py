from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from pages import HOSTILE, Reader
from rich.console import Console

from hwnas.report.terminal import validation_notes, validation_table
from hwnas.report.validation import validation_page, write_validation_html
from hwnas.report.validation_figures import agreement_figure, residual_figure
from hwnas.report.validation_wording import explains, systematic_text, worst_text
from hwnas.validation import (
    SCHEMA,
    VERSION,
    Agreement,
    BlockError,
    Coverage,
    NetworkResult,
    Promise,
    SystematicError,
    TableValidation,
    WorstCase,
)

BLOCK = BlockError("stage1_0", "mbconv:size=16,kernel=5", "estimated", 0.2, 0.26, 0.39, -0.1, 0.8)


def make_network(number: int, **changes: Any) -> NetworkResult:
    predicted = 1.0 + 0.3 * number
    measured = predicted * (1 + 0.02 * (-1) ** number)
    network = NetworkResult(
        arch=f"{number}-1-0",
        choice={"stage1.kernel": 3 + 2 * (number % 3), "activation": "relu"},
        drawn="uniform" if number % 2 else "spread",
        predicted_ms=predicted,
        low_ms=0.95 * predicted,
        high_ms=1.05 * predicted,
        upper_ms=1.04 * predicted,
        measured_ms=measured,
        measured_low_ms=0.99 * measured,
        measured_high_ms=1.01 * measured,
        refused=None,
        again_ms=1.01 * measured,
        again_refused=None,
        anchor_drift=0.01,
    )
    return replace(network, **changes)


REFUSED = {"measured_ms": None, "measured_low_ms": None, "measured_high_ms": None, "again_ms": None}


@pytest.fixture
def result() -> TableValidation:
    networks = [make_network(number) for number in range(8)]
    networks.append(make_network(8, refused="the sweeps spread by 14 %", anchor_drift=None, **REFUSED))
    networks.append(make_network(9, again_ms=None, again_refused="the anchors drifted by 12 %"))
    return TableValidation(
        schema=SCHEMA,
        version=VERSION,
        hwnas="0.1.0",
        created="2025-01-31T14:05:09+00:00",
        command="hwnas validate my.toml",
        table="latency_tables/epyc/table.json",
        table_created="2024-12-24",
        rows=412,
        estimated_rows=17,
        target={"device": "local", "runtime": "onnxruntime", "threads": 1, "cpu": "Example CPU"},
        space={"name": "mobilenetv3", "resolutions": [16, 24]},
        seed=7,
        seconds=75.0,
        promise=Promise(24, 0.013, 0.011),
        networks=tuple(networks),
        agreement=Agreement(
            networks=9,
            mean_error=0.021,
            mean_error_low=0.017,
            mean_error_high=0.026,
            median_error=0.02,
            max_error=0.081,
            within_5_percent=0.89,
            within_10_percent=1.0,
            bias=0.004,
            bias_low=-0.009,
            bias_high=0.018,
            unbiased_error=0.019,
            spearman=0.9931,
            kendall=0.95,
            repeated=8,
            noise_floor=0.011,
        ),
        by_draw={"uniform": 0.022, "spread": 0.018},
        interval=Coverage(0.9, 8, 9, 24, 0.518, 0.997, "as promised"),
        upper=Coverage(0.95, 4, 9, 24, 0.137, 0.788, "too few inside"),
        anchor_drift=-0.03,
        worst=(
            WorstCase("3-1-0", 1.9, 2.04, -0.069, 0.051, 1.1, (BLOCK,), None),
            WorstCase("5-1-0", 2.5, 2.3, 0.087, 0.06, None, (), "the machine is busy"),
        ),
        systematic=(
            SystematicError("block", "mbconv:size=16,kernel=5", "estimated", 6, -0.31, 0.06, 0.002, 1),
            SystematicError("option", "resolution = 24", "", 4, 0.034, 0.008, 0.012, 0),
        ),
        judgement="holds",
        verdict="The table holds: mean error 2.1%.",
        notes=("1 not measured: the sweeps spread by 14 %",),
    )


@pytest.fixture
def empty(result: TableValidation) -> TableValidation:
    """Every network was refused, and the table has no bounds."""
    networks = tuple(
        replace(one, refused="busy", again_refused=None, low_ms=None, high_ms=None, upper_ms=None, **REFUSED)
        for one in result.networks
    )
    return replace(
        result,
        networks=networks,
        agreement=None,
        by_draw={},
        interval=None,
        upper=None,
        promise=None,
        anchor_drift=None,
        worst=(),
        systematic=(),
        judgement="not judged",
        verdict="The table could not be judged: no network was measured.",
    )


def test_the_page_says_everything(result: TableValidation) -> None:
    reader = Reader(validation_page(result))
    expected = ["Validation of table", "The table holds", "2.1 % (1.7 % to 2.6 %)", "1.1 % on 8", "0.993, 0.950"]
    expected += ["8 of 9 (51.8 % to 99.7 %): as promised, by 24", "4 of 9", "too few inside", "-3.0 %", "1.3 % on 24"]
    expected += ["2.2 % on 5", "1.8 % on 4", "9 of 10", "not measured: the sweeps spread", "not measured: the anchors"]
    expected += ["3-1-0", "mbconv:size=16,kernel=5", "not profiled: the machine is busy", "resolution = 24", "0.002"]
    expected += ["412, 17", "2024-12-24", "1 min 15 s", "hwnas validate my.toml", "Example CPU", "latency_tables/epyc"]
    for text in expected:
        assert text in reader.text, text
    assert set(reader.data) == {"agreement", "residuals"}
    assert "None" not in reader.text
    assert not re.search(r"\bnan\b", reader.text)


def test_points_are_the_measured_networks(result: TableValidation) -> None:
    agreed, residuals = agreement_figure(result), residual_figure(result)
    assert agreed is not None
    assert residuals is not None
    points = {trace["name"]: trace for trace in agreed["data"] if trace.get("mode") == "markers"}
    assert {name: len(trace["x"]) for name, trace in points.items()} == {"uniform networks": 5, "spread networks": 4}
    measured = {row.measured_ms: row for row in result.measured}
    for trace in points.values():
        for x, y, text, up in zip(trace["x"], trace["y"], trace["hovertext"], trace["error_y"]["array"], strict=True):
            row = measured[x]
            assert (y, y + up) == (row.predicted_ms, pytest.approx(row.high_ms))
            assert row.arch in text
            assert "stage1.kernel" in text
    errors = [y for trace in residuals["data"] if trace.get("mode") == "markers" for y in trace["y"]]
    assert sorted(errors) == pytest.approx(sorted(100 * row.error for row in result.measured if row.error is not None))
    floor = [trace for trace in residuals["data"] if trace.get("name") == "noise floor"]
    assert floor[0]["y"] == pytest.approx([1.1, 1.1])


def test_nothing_measured_is_said(empty: TableValidation) -> None:
    reader = Reader(validation_page(empty))
    assert "No network was measured." in reader.text
    assert "could not be judged" in reader.text
    assert "the table gives none" in reader.text
    assert reader.text.count("not measured: busy") == 10
    assert reader.data == {}
    assert (agreement_figure(empty), residual_figure(empty)) == (None, None)
    assert "None" not in reader.text
    assert list(validation_notes(empty)) == []


def test_hostile_names_stay_text(result: TableValidation) -> None:
    network = make_network(1, arch=HOSTILE, choice={HOSTILE: HOSTILE})
    block = replace(BLOCK, key=HOSTILE, position=HOSTILE)
    bad = replace(
        result,
        table=HOSTILE.replace("/", ""),
        command=HOSTILE,
        verdict=HOSTILE,
        notes=(HOSTILE,),
        networks=(network, make_network(2, refused=HOSTILE, **REFUSED)),
        target={HOSTILE: HOSTILE},
        space={HOSTILE: [HOSTILE]},
        worst=(replace(result.worst[0], arch=HOSTILE, blocks=(block,)),),
        systematic=(replace(result.systematic[0], name=HOSTILE),),
    )
    good, reader = Reader(validation_page(result)), Reader(validation_page(bad))
    assert {name for name, _ in reader.elements} <= {name for name, _ in good.elements}
    assert reader.text.count(HOSTILE) >= 9
    texts = [text for figure in reader.data.values() for one in figure["data"] for text in one.get("hovertext", [])]
    assert {found for text in texts for found in re.findall(r"</?\w+", text)} == {"<b", "</b", "<br"}


def test_figures_and_tables_are_described(result: TableValidation) -> None:
    elements = Reader(validation_page(result)).elements
    plots = [attributes for _, attributes in elements if attributes.get("class") == "plot"]
    assert len(plots) == 2
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    names = [name for name, _ in elements]
    assert names.count("table") == names.count("caption") == 7
    assert all("src" not in attributes for _, attributes in elements)


def test_the_page_is_written_whole(result: TableValidation, tmp_path: Path) -> None:
    write_validation_html(result, tmp_path / "validation.html")
    assert (tmp_path / "validation.html").read_text(encoding="utf-8") == validation_page(result)
    assert [path.name for path in tmp_path.iterdir()] == ["validation.html"]


def test_plotly_knows_every_property(result: TableValidation) -> None:
    def without_colours(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_colours(one) for key, one in value.items() if not key.endswith("color")}
        return [without_colours(one) for one in value] if isinstance(value, list) else value

    for figure in (agreement_figure(result), residual_figure(result)):
        assert figure is not None
        drawn = go.Figure(without_colours(figure))
        assert len(drawn.data) == len(figure["data"])


@pytest.mark.parametrize(
    ("explained", "wanted", "words"),
    [
        (1.1, True, "explain 110.0 % of it"),
        (0.3, True, "explain 30.0 % of it"),
        (0.1, False, "do not explain it"),
        (-0.9, False, "do not explain it"),
        (3.0, False, "do not explain it"),
        (None, False, "not profiled: busy"),
    ],
)
def test_only_what_explains_is_called_so(
    result: TableValidation, explained: float | None, wanted: bool, words: str
) -> None:
    worst = replace(result.worst[0], explained=explained, not_profiled=None if explained is not None else "busy")
    assert explains(worst) is wanted
    assert words in worst_text(worst)


def test_systematic_errors_in_words(result: TableValidation) -> None:
    block, option = map(systematic_text, result.systematic)
    assert "31.0 % (± 6.0 %) too little for this block, an estimated row, or another that goes with it (1)" in block
    more = systematic_text(replace(result.systematic[0], error=2.5))
    assert more.endswith("(more than all of it: rather something that goes with it)")
    assert option == "resolution = 24: networks with it are predicted 3.4 % (± 0.8 %) too much"


def test_the_terminal_says_it_within_80_columns(result: TableValidation) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(validation_table(result))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for wanted in ("2.1 % (1.7 % to 2.6 %)", "9 of 10", "1.3 % on 24, noise floor 1.1 %"):
        assert wanted in text
    notes = list(validation_notes(result))
    assert notes[0].startswith("3-1-0: predicted 1.90 ms, measured 2.04 ms: -6.9 %")
    assert notes[1] == ("    0.100 ms too little, 80.0 % of the error: stage1_0 mbconv:size=16,kernel=5 (estimated)")
    assert len(notes) == 5
    quiet = list(validation_notes(replace(result, worst=(), systematic=())))
    assert [note.split()[0] for note in quiet] == ["no", "no"]


def test_networks_are_sorted_by_error(result: TableValidation) -> None:
    errors = [abs(row.error) for row in result.measured if row.error is not None]
    assert errors == sorted(errors, reverse=True)
    assert np.isfinite(errors).all()
    assert [row.refused for row in result.refused] == ["the sweeps spread by 14 %"]
    assert make_network(0).mean_ms == pytest.approx(1.02 * 1.01**0.5)
    assert make_network(0, again_ms=None).mean_ms == pytest.approx(1.02)


@pytest.mark.browser
def test_a_browser_draws_every_network(
    rendered: Callable[[Path], tuple[str, str]], result: TableValidation, tmp_path: Path
) -> None:
    write_validation_html(result, tmp_path / "validation.html")
    document, console = rendered(tmp_path / "validation.html")
    assert console == ""
    assert len(re.findall(r'<path class="point"', document)) == 2 * len(result.measured)
    assert 'fill="--' not in document
