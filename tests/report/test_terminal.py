from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from hwnas.report.summary import NetworkRow, RunSummary
from hwnas.report.terminal import front_table


def shown(summary: RunSummary, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(front_table(summary))
    return file.getvalue()


def test_every_network_has_its_numbers_on_one_line_of_80_columns(summary: RunSummary) -> None:
    lines = shown(summary).splitlines()
    assert max(map(len, lines)) <= 80
    for row in summary.networks:
        (line,) = [line for line in lines if line.startswith(f"│ {row.name} ")]
        assert f"{row.accuracy:.1f}" in line
        assert row.file in line
    assert any(all(text in line for text in ("net-4", "1.18", "1.20", "-2.0")) for line in lines)


def test_what_is_not_measured_says_why(summary: RunSummary) -> None:
    text = shown(summary)
    assert "net-6 not measured: spread of ratios 14 % > 10 %" in text
    assert "net-5 NOT DEPLOYABLE: over the latency limit, as measured" in text


def test_the_fastest_comes_first(summary: RunSummary) -> None:
    text = shown(replace(summary, networks=summary.networks[::-1]))
    assert text.index("net-0") < text.index("net-4")


def test_long_names_fold_and_markup_is_text(summary: RunSummary, row_of: Callable[..., NetworkRow]) -> None:
    row = row_of(1, name="[red]" + "long-" * 20, file="export/" + "deep/" * 20 + "net.onnx")
    text = shown(replace(summary, networks=(row,)))
    assert max(map(len, text.splitlines())) <= 80
    assert "[red]" in text
    assert "0.525" in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_an_empty_front_is_said(summary: RunSummary, width: int) -> None:
    assert "no network on the front" in shown(replace(summary, networks=()), width)
