"""Results as tables for the terminal, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from hwnas.printable import printable
from hwnas.report.deployable import outside
from hwnas.report.summary import RunSummary
from hwnas.report.validation_wording import explains, systematic_text, validation_facts, worst_text
from hwnas.report.wording import NOTHING, share, significant
from hwnas.validation import TableValidation

# Blocks of a badly predicted network that the terminal lists; the page lists more.
LISTED = 3


def front_table(summary: RunSummary) -> Table:
    """The exported networks, fastest first. Names are shown as they are, never read as rich markup."""
    table = Table(title="Exported networks, measured on the target", title_justify="left", caption_justify="left")
    table.add_column("Network", overflow="fold", min_width=7)
    for heading in ("Accuracy\n%", "Predicted\nms", "Measured\nms", "Error\n%"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("File", overflow="fold", ratio=1)
    for row in sorted(summary.networks, key=lambda row: row.predicted_ms):
        measured = Text(significant(row.measured_ms), style="bold red" if row.verdict.deployable is False else "bold")
        error = NOTHING if row.error is None else share(row.error, sign=True).removesuffix(" %")
        table.add_row(
            _text(row.name),
            f"{row.accuracy:.1f}",
            significant(row.predicted_ms),
            measured,
            error,
            _text(row.file),
        )
    notes = [
        f"{row.name} {'NOT DEPLOYABLE: ' if row.verdict.deployable is False else ''}{row.verdict.reason}"
        for row in summary.networks
        if row.verdict.reason
    ]
    notes += [f"{row.name} {outside(row.outside_interval)}" for row in summary.networks if row.outside_interval]
    if not summary.networks:
        notes = ["no network on the front"]
    table.caption = _text("\n".join(notes)) if notes else None
    return table


def validation_table(result: TableValidation) -> Table:
    """The numbers of a validation for the terminal."""
    table = Table(title="Predicted against measured", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in validation_facts(result):
        table.add_row(_text(what), _text(value))
    return table


def validation_notes(result: TableValidation) -> Iterator[str]:
    """What the terminal says below the numbers: the worst networks, their blocks, what is off systematically."""
    for worst in result.worst:
        yield printable(f"{worst.arch}: {worst_text(worst)}")
        for block in worst.blocks[:LISTED] if explains(worst) else ():
            estimated = " (estimated)" if block.origin == "estimated" else ""
            much = "much" if block.excess_ms > 0 else "little"
            yield printable(
                f"    {significant(abs(block.excess_ms))} ms too {much}, {share(block.share)} of the error: "
                f"{block.position} {block.key}{estimated}"
            )
    if not result.worst and result.agreement is not None:
        yield "no network's error is beyond the noise"
    for found in result.systematic:
        yield printable(systematic_text(found))
    if not result.systematic and result.agreement is not None:
        yield "no block and no option is off systematically, as far as these networks tell"


def _text(text: str) -> Text:
    """The text as it is, never read as rich markup nor obeyed by the terminal."""
    return Text(printable(text))
