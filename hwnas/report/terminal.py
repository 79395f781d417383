"""The front as a table for the terminal, readable at 80 columns."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from hwnas.report.summary import RunSummary
from hwnas.report.wording import NOTHING, share, significant


def front_table(summary: RunSummary) -> Table:
    """The exported networks, fastest first. Names are shown as they are, never read as rich markup."""
    table = Table(title="Exported networks, measured on the target", title_justify="left", caption_justify="left")
    table.add_column("Network", overflow="fold", min_width=7)
    for heading in ("Accuracy\n%", "Predicted\nms", "Measured\nms", "Error\n%"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("File", overflow="fold", ratio=1)
    for row in sorted(summary.networks, key=lambda row: row.predicted_ms):
        measured = Text(significant(row.measured_ms), style="bold red" if row.within_limit is False else "bold")
        error = NOTHING if row.error is None else share(row.error, sign=True).removesuffix(" %")
        table.add_row(
            Text(row.name), f"{row.accuracy:.1f}", significant(row.predicted_ms), measured, error, Text(row.file)
        )
    notes = [f"{row.name} over the limit" for row in summary.networks if row.within_limit is False]
    notes += [f"{row.name} not measured: {row.refused}" for row in summary.networks if row.refused]
    if not summary.networks:
        notes = ["no network on the front"]
    table.caption = Text("\n".join(notes)) if notes else None
    return table
