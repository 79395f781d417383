"""The page as a browser shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hwnas.report.html import write_html
from hwnas.report.summary import NetworkRow, RunSummary

pytestmark = pytest.mark.browser


def points(document: str) -> int:
    """How many scatter points plotly drew, those of the legends not counted."""
    return len(re.findall(r'<path class="point"', document))


def test_every_point_is_drawn_and_the_console_is_silent(
    rendered: Callable[[Path], tuple[str, str]], summary: RunSummary, tmp_path: Path
) -> None:
    write_html(summary, tmp_path / "report.html")
    document, console = rendered(tmp_path / "report.html")
    assert console == ""
    exported = {row.arch for row in summary.networks}
    trained = [one for one in summary.candidates if one.valid_accuracy is not None and one.arch not in exported]
    front, agreement, scores = len(trained) + 7 + 6, 6, 2 * len(summary.candidates)
    assert points(document) == front + agreement + scores
    legends = re.findall(r'class="legendtext"[^>]*>([^<]*)<', document)
    assert {"predicted", "measured", "evaluated (validation accuracy)", "±5 %", "on the front"} <= set(legends)
    assert "limit 1.45 ms" in document
    assert 'fill="--' not in document
    assert "rgb(213, 94, 0)" in document, "the colours of the style sheet reach the figure"


def test_hostile_names_run_nothing(
    rendered: Callable[[Path], tuple[str, str]],
    summary: RunSummary,
    row_of: Callable[..., NetworkRow],
    tmp_path: Path,
) -> None:
    bad = "</script><script>console.error('ran')</script><img src=x onerror=\"console.error('ran')\">"
    row = row_of(1, name=bad, choice={bad: bad}, file=bad.replace("\\", "/"))
    write_html(replace(summary, name=bad, networks=(row,), recipe=bad, target={bad: bad}), tmp_path / "bad.html")
    document, console = rendered(tmp_path / "bad.html")
    assert console == ""
    assert points(document) > 0
    assert "<img" not in document


def test_the_console_would_be_heard(rendered: Callable[[Path], tuple[str, str]], tmp_path: Path) -> None:
    page = tmp_path / "loud.html"
    page.write_text("<!DOCTYPE html><script>nonsense()</script>", encoding="utf-8")
    assert "nonsense" in rendered(page)[1]


def test_headings_sort(rendered: Callable[[Path], tuple[str, str]], summary: RunSummary, tmp_path: Path) -> None:
    """Sorting by error, which one network has not: it stays last, whichever the order."""
    write_html(summary, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # it keeps out the script below
    script = """
        const names = () => [...document.querySelectorAll(".networks summary")].map((one) => one.textContent).join(" ");
        const click = () => document.querySelectorAll(".networks th button")[4].click();
        click(); document.body.dataset.once = names();
        click(); document.body.dataset.twice = names();
    """
    (tmp_path / "sorted.html").write_text(
        text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8"
    )
    document, console = rendered(tmp_path / "sorted.html")
    assert console == ""
    errors = {row.name: row.error for row in summary.networks}
    for order, falling in (("once", False), ("twice", True)):
        (names,) = re.findall(rf'data-{order}="([^"]*)"', document)
        values = [errors[name] for name in names.split()]
        assert values.pop() is None
        assert values == sorted(values, key=float, reverse=falling)
        assert len(values) == 6
