"""What every page is made of: one self-contained file that works from a disk and requests nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from hwnas.report.markup import Markup, script_json, tag
from hwnas.report.plots import Figure
from hwnas.report.wording import significant
from hwnas.space import Option

ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M1 15V9h5V5h5V1h4' fill='none' stroke='%230072b2' stroke-width='2.5'/%3E%3C/svg%3E"
)


def write_page(text: str, path: Path) -> None:
    """Write a page, replacing an older one only when the new one is complete."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8", newline="\n")
    unfinished.replace(path)


def document(title: str, body: Markup, figures: Mapping[str, Figure]) -> str:
    """The whole page as text; `figures` go by the id of the element that shows each."""
    from plotly.offline import get_plotlyjs  # slow to import, and only the page needs it

    scripts = [Markup(get_plotlyjs().replace("\r\n", "\n")), Markup(_read("page.js"))]
    # Only these scripts may run and nothing may be fetched: what a run is called cannot change that.
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<link rel="icon" href="{ICON}">'),
        tag("title", title),
        tag("style", Markup(_read("page.css"))),
    )
    data = tag("script", script_json(figures), type="application/json", id="figures")
    ends = [tag("script", text) for text in scripts]
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', body, data, *ends), lang='en')}\n"


def heading(
    title: str, verdict: str, about: str, tiles: Iterable[tuple[str, str]], warnings: Sequence[str] = ()
) -> Markup:
    """The head of the visible page: what it is about, the verdict, and the few numbers that matter most."""
    listed = tag("ul", *(tag("li", warning) for warning in warnings))
    return tag(
        "header",
        tag("h1", title),
        tag("p", verdict, class_="verdict"),
        tag("p", about, class_="muted"),
        tag(
            "dl",
            *(tag("div", tag("dt", what), tag("dd", value), class_="tile") for what, value in tiles),
            class_="tiles",
        ),
        tag("aside", tag("strong", "Warnings"), listed, class_="warnings") if warnings else Markup(),
    )


def plot(name: str, about: str, caption: str) -> Markup:
    """The place of the figure `name`; `about` is read to who cannot see it."""
    return tag(
        "figure",
        tag("div", id=name, class_="plot", role="img", aria_label=about),
        tag("figcaption", caption),
    )


def sorting_table(caption: str, columns: Iterable[tuple[str, str]], rows: Iterable[Markup]) -> Markup:
    """A table whose headings sort it; `columns` are (heading, class), the class "number" for numbers."""
    headings = [tag("th", tag("button", name, type="button"), scope="col", class_=kind) for name, kind in columns]
    table = tag(
        "table",
        tag("caption", f"{caption} (headings sort)"),
        tag("thead", tag("tr", *headings)),
        tag("tbody", *rows),
        class_="networks",
    )
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)


def network_name(name: str, arch: str, choice: Mapping[str, Option]) -> Markup:
    """A network's name, which opens to show what it consists of."""
    choices = tag("ul", *(tag("li", f"{slot}: {option}") for slot, option in choice.items()))
    return tag("details", tag("summary", name), tag("small", arch), choices)


def cell(value: float | None, *shown: str) -> Markup:
    """A number in a table: what is shown, and what is sorted by."""
    return tag("td", *shown, class_="number", data_value="" if value is None else repr(value))


def bounds(low: float | None, high: float | None) -> list[Markup]:
    """The interval below a number, if there is one."""
    return [] if low is None or high is None else [tag("small", f"{significant(low)} to {significant(high)}")]


def _read(name: str) -> Markup:
    return Markup((files(__package__) / name).read_text(encoding="utf-8"))
