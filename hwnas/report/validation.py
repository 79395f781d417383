"""A validation of a latency table as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hwnas.report.document import bounds, cell, document, heading, network_name, plot, sorting_table, write_page
from hwnas.report.markup import Markup, facts, join, tag
from hwnas.report.plots import Figure
from hwnas.report.validation_figures import agreement_figure, residual_figure
from hwnas.report.validation_wording import systematic_text, validation_facts, worst_text
from hwnas.report.wording import NOTHING, plain, seconds, share, significant, target_line
from hwnas.validation import NetworkResult, TableValidation

NETWORK_COLUMNS = (
    ("Network", ""),
    ("Drawn", ""),
    ("Predicted (ms)", "number"),
    ("Measured (ms)", "number"),
    ("Second session (ms)", "number"),
    ("Error (%)", "number"),
)
BLOCK_COLUMNS = (
    ("Block", ""),
    ("Row", ""),
    ("Predicted (ms)", "number"),
    ("Profiled then", "number"),
    ("and now (ms)", "number"),
    ("Too much (ms)", "number"),
    ("Share (%)", "number"),
)
SYSTEMATIC_COLUMNS = (
    ("Block or option", ""),
    ("Row", ""),
    ("Networks", "number"),
    ("Table off by (%)", "number"),
    ("Standard error (%)", "number"),
    ("p, corrected", "number"),
)


def write_validation_html(result: TableValidation, path: Path) -> None:
    """Write the page, replacing an older one only when the new one is complete."""
    write_page(validation_page(result), path)


def validation_page(result: TableValidation) -> str:
    """The whole page as text."""
    figures: dict[str, Figure] = {}
    body = join(_body(result, figures))
    return document(f"{_title(result)}: hwnas", body, figures)


def _title(result: TableValidation) -> str:
    return f"Validation of {Path(result.table).stem}" if result.table else "Validation of a latency table"


def _body(result: TableValidation, figures: dict[str, Figure]) -> Iterator[Markup]:
    """The visible page; puts the figures it shows into `figures`, by the id of their element."""
    found = result.agreement
    tiles = [
        ("Mean error", share(found.mean_error if found else None)),
        ("Noise floor", share(found.noise_floor if found else None)),
        ("Within 5 %", share(found.within_5_percent if found else None)),
        (
            "In the 90 % interval",
            f"{result.interval.inside} of {result.interval.networks}" if result.interval else NOTHING,
        ),
    ]
    yield heading(_title(result), result.verdict, target_line(result.target, result.created), tiles, result.notes)
    yield Markup("<main>")
    yield tag("noscript", tag("p", "The figures need JavaScript; the tables hold the same numbers."))
    shown = tag("p", "No network was measured.", class_="muted")
    agreed, residuals = agreement_figure(result), residual_figure(result)
    if agreed is not None:
        figures["agreement"] = agreed
        caption = (
            "Each unseen network once; bars: 90 % interval of the prediction, 95 % interval of the measurement. In the "
            "band, the prediction is within 5 % of the measurement."
        )
        shown = plot("agreement", f"Predicted against measured latency. {result.verdict}", caption)
    numbers = facts("How good the prediction is", validation_facts(result))
    yield tag("section", tag("h2", "Predicted and measured"), tag("div", shown, numbers, class_="pair small"))
    if residuals is not None:
        figures["residuals"] = residuals
        caption = (
            "Error of every network over its predicted latency; above zero the table says too much. The band is the "
            "noise floor: what the same networks differ by when they are measured twice."
        )
        about = "Errors of the prediction over predicted latency."
        yield tag("section", tag("h2", "Errors"), tag("div", plot("residuals", about, caption), class_="small"))
    yield tag("section", tag("h2", "What explains the errors"), *_worst(result), *_systematic(result))
    order = [*result.measured, *result.refused]
    rows = sorting_table(
        "Unseen networks", NETWORK_COLUMNS, [_network(number, row) for number, row in enumerate(order)]
    )
    yield tag("section", tag("h2", "Every network"), rows)
    yield tag("section", tag("h2", "How it came about"), *_provenance(result))
    yield Markup("</main>")
    yield tag("footer", f"Written by hwnas {result.hwnas}. This page requests nothing from any network.")


def _network(number: int, row: NetworkResult) -> Markup:
    measured, again = (
        cell(row.measured_ms, significant(row.measured_ms), *bounds(row.measured_low_ms, row.measured_high_ms)),
        cell(row.again_ms, significant(row.again_ms)),
    )
    if row.refused is not None:
        measured = tag("td", f"not measured: {row.refused}", class_="reason", data_value="")
    if row.again_refused is not None:
        again = tag("td", f"not measured: {row.again_refused}", class_="reason", data_value="")
    return tag(
        "tr",
        tag("td", network_name(f"unseen {number + 1}", row.arch, row.choice), data_value=f"unseen {number + 1}"),
        tag("td", row.drawn),
        cell(row.predicted_ms, significant(row.predicted_ms), *bounds(row.low_ms, row.high_ms)),
        measured,
        again,
        cell(row.error, NOTHING if row.error is None else share(row.error, sign=True).removesuffix(" %")),
    )


def _worst(result: TableValidation) -> Iterator[Markup]:
    if not result.worst:
        yield tag("p", "No network's error is beyond the noise.", class_="muted")
    for worst in result.worst:
        yield tag("p", tag("strong", worst.arch), f": {worst_text(worst)}.")
        if worst.blocks:
            rows = [
                tag(
                    "tr",
                    tag("td", block.position, tag("small", block.key), data_value=block.position),
                    tag("td", block.origin),
                    *(
                        cell(value, significant(value))
                        for value in (block.table_ms, block.table_profiled_ms, block.profiled_ms)
                    ),
                    cell(block.excess_ms, _signed(block.excess_ms)),
                    cell(block.share, share(block.share, sign=True).removesuffix(" %")),
                )
                for block in worst.blocks
            ]
            yield sorting_table(f"Blocks of {worst.arch} that differ most", BLOCK_COLUMNS, rows)


def _systematic(result: TableValidation) -> Iterator[Markup]:
    yield tag("h3", "Off in all networks")
    if not result.systematic:
        yield tag("p", "No block and no option is off systematically, as far as these networks tell.", class_="muted")
        return
    yield tag("ul", *(tag("li", systematic_text(found)) for found in result.systematic))
    rows = [
        tag(
            "tr",
            tag("td", found.name),
            tag("td", found.origin or found.kind),
            cell(found.networks, str(found.networks)),
            cell(found.error, share(found.error, sign=True).removesuffix(" %")),
            cell(found.standard_error, share(found.standard_error).removesuffix(" %")),
            cell(found.p_value, f"{found.p_value:.3f}"),
        )
        for found in result.systematic
    ]
    yield sorting_table("Blocks and options that are off systematically", SYSTEMATIC_COLUMNS, rows)


def _provenance(result: TableValidation) -> Iterator[Markup]:
    made = [
        ("Latency table", result.table or NOTHING),
        ("Table made", result.table_created or NOTHING),
        ("Rows, of them estimated", f"{result.rows}, {result.estimated_rows}"),
        ("Validated", result.created),
        ("Time to measure", seconds(result.seconds)),
        ("Seed", str(result.seed)),
        ("Command", result.command),
    ]
    yield tag(
        "div",
        facts("Target", [(key, str(value)) for key, value in result.target.items()]),
        tag("div", facts("Table", made), facts("Search space", [(k, plain(v)) for k, v in result.space.items()])),
        class_="pair",
    )


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else '-'}{significant(abs(value))}"
