"""A run as one page: figures, tables, and how it came about. Self-contained: works from a file, requests nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from hwnas.report.deployable import outside
from hwnas.report.document import bounds, cell, document, heading, network_name, plot, sorting_table, write_page
from hwnas.report.figures import agreement_figure, front_figure, score_figures
from hwnas.report.markup import Markup, facts, join, tag
from hwnas.report.plots import Figure
from hwnas.report.ranking import ranking_table
from hwnas.report.summary import LATENCY_LIMIT, NetworkRow, RunSummary
from hwnas.report.wording import (
    NOTHING,
    best,
    count,
    mean_error,
    ms,
    plain,
    seconds,
    share,
    significant,
    size,
    span,
    target_line,
    verdict,
)

NETWORK_COLUMNS = (
    ("Network", ""),
    ("Accuracy (%)", "number"),
    ("Predicted (ms)", "number"),
    ("Measured (ms)", "number"),
    ("Error (%)", "number"),
    ("MACs", "number"),
    ("Parameters", "number"),
    ("Size", "number"),
    ("File", ""),
)


def write_html(summary: RunSummary, path: Path) -> None:
    """Write the page, replacing an older one only when the new one is complete. Links are relative to its folder."""
    write_page(page(summary), path)


def page(summary: RunSummary) -> str:
    """The whole page as text."""
    figures: dict[str, Figure] = {}
    body = join(_body(summary, figures))
    return document(f"{summary.name}: hwnas report", body, figures)


def _body(summary: RunSummary, figures: dict[str, Figure]) -> Iterator[Markup]:
    """The visible page; puts the figures it shows into `figures`, by the id of their element."""
    yield _header(summary)
    yield Markup("<main>")
    yield tag("noscript", tag("p", "The figures need JavaScript; the tables hold the same numbers."))
    front = front_figure(summary)
    shown = tag("p", "No network reached the front.", class_="muted")
    if front is not None:
        figures["front"] = front
        caption = (
            "Exported networks: accuracy of the file on the test set. Circles: latency predicted from the table; "
            "diamonds: measured again on the target; crosses: not deployable; bars: intervals. Up and left is better."
        )
        shown = plot("front", "Accuracy against latency. " + verdict(summary), caption)
    yield tag("section", tag("h2", "Accuracy against latency"), shown, _networks(summary))
    agreement = agreement_figure(summary)
    shown = tag("p", "No network of this run was measured on the target.", class_="muted")
    if agreement is not None:
        figures["agreement"] = agreement
        caption = "Each network once. In the band, the prediction is within 5 % of the measurement."
        about = f"Predicted against measured latency: mean error {share(mean_error(summary))}."
        shown = plot("agreement", about, caption)
    yield tag(
        "section",
        tag("h2", "Predicted and measured"),
        tag("div", shown, _validation(summary), class_="pair small"),
    )
    scores = score_figures(summary)
    plots = []
    for number, (name, figure) in enumerate(scores.items()):
        figures[f"score-{number}"] = figure
        about = f"{name} of {len(summary.candidates)} architectures against predicted latency."
        plots.append(plot(f"score-{number}", about, f"{name} of every architecture that was scored."))
    if plots:
        yield tag("section", tag("h2", "Scores"), ranking_table(summary), tag("div", *plots, class_="pair small"))
    yield tag("section", tag("h2", "How it came about"), *_provenance(summary))
    yield Markup("</main>")
    yield tag("footer", f"Written by hwnas {summary.version}. This page requests nothing from any network.")


def _header(summary: RunSummary) -> Markup:
    measured = [row.measured_ms for row in summary.networks if row.measured_ms is not None]
    winner = best(summary)
    tiles = (
        (
            "Best accuracy within the limit" if winner and winner.within_limit else "Best accuracy",
            f"{winner.accuracy:.1f} %" if winner else NOTHING,
        ),
        ("Latency, measured", span(min(measured), max(measured)) if measured else "not measured"),
        ("Mean prediction error", share(mean_error(summary))),
        ("Noise floor", share(summary.table.noise_floor)),
    )
    about = target_line(summary.target, summary.created)
    return heading(summary.name, verdict(summary), about, tiles, summary.warnings)


def _networks(summary: RunSummary) -> Markup:
    """The exported networks, fastest first; a click on a heading sorts."""
    if not summary.networks:
        return Markup()
    rows = [_network(row) for row in sorted(summary.networks, key=lambda row: row.predicted_ms)]
    return sorting_table("Exported networks", NETWORK_COLUMNS, rows)


def _network(row: NetworkRow) -> Markup:
    name = [network_name(row.name, row.arch, row.choice)]
    if row.verdict.deployable is False:
        name.append(tag("div", f"not deployable: {row.verdict.reason}", class_="over"))
    over = [tag("div", outside(row.outside_interval), class_="over")] if row.outside_interval else []
    over += [tag("div", "over the limit", class_="over")] if row.within_limit is False else []
    if row.refused is None:
        interval = bounds(row.measured_low_ms, row.measured_high_ms)
        measured = cell(row.measured_ms, significant(row.measured_ms), *interval, *over)
    else:
        measured = tag("td", f"not measured: {row.refused}", *over, class_="reason", data_value="")
    link = tag("a", row.file, href="./" + quote(row.file))  # "./": a file, whatever its name looks like
    return tag(
        "tr",
        tag("td", *name, data_value=row.name),
        cell(row.accuracy, f"{row.accuracy:.1f}", tag("small", f"validation {row.valid_accuracy:.1f}")),
        cell(row.predicted_ms, significant(row.predicted_ms), *bounds(row.predicted_low_ms, row.predicted_high_ms)),
        measured,
        cell(row.error, share(row.error, sign=True).removesuffix(" %")),
        cell(row.macs, count(row.macs)),
        cell(row.params, count(row.params)),
        cell(row.size_bytes, size(row.size_bytes)),
        tag("td", link, data_value=row.file),
    )


def _validation(summary: RunSummary) -> Markup:
    table = summary.table
    measured = [row for row in summary.networks if row.error is not None]
    worst = max((abs(row.error) for row in measured if row.error is not None), default=None)
    return facts(
        "How good the prediction is",
        [
            ("Exported networks measured", f"{len(measured)} of {len(summary.networks)}"),
            ("Of them deployable", f"{sum(row.verdict.deployable is True for row in measured)} of {len(measured)}"),
            ("Of them outside their prediction interval", str(sum(bool(row.outside_interval) for row in measured))),
            ("Mean error on them", share(mean_error(summary))),
            ("Largest error on them", share(worst)),
            ("Held-out networks of the table", count(table.held_out)),
            ("Mean error on held-out", share(table.mean_error)),
            ("Largest error on held-out", share(table.max_error)),
            ("Mean error on networks chosen as a search would", share(table.searched_error)),
            ("Noise floor: measured twice, minutes apart", share(table.noise_floor)),
            ("Latency table", table.path),
            ("Rows of the table", count(table.rows)),
        ],
    )


def _provenance(summary: RunSummary) -> Iterator[Markup]:
    limits = [
        (
            "Limit: latency" if name == LATENCY_LIMIT else f"Limit: {name}",
            ms(value) if name == LATENCY_LIMIT else f"{value:g}",
        )
        for name, value in summary.limits.items()
    ]
    evaluated = ("Architectures evaluated", str(len(summary.candidates)))
    stages = [(stage, seconds(value)) for stage, value in summary.seconds.items()]
    space = [(key, plain(value)) for key, value in summary.space.items()]
    yield tag(
        "div",
        facts("Target", [(key, str(value)) for key, value in summary.target.items()]),
        tag(
            "div",
            facts("Time by stage", [*stages, ("all stages", seconds(sum(summary.seconds.values())))]),
            facts("Search space and limits", [*space, *limits, evaluated]),
        ),
        class_="pair",
    )
    yield tag("details", tag("summary", "The recipe of this run"), tag("pre", summary.recipe), open="")
