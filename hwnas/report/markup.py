"""HTML that cannot be broken by what a run is called: every string is escaped unless it was made here."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

from hwnas.printable import printable


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """An element. Children that are not Markup are escaped, and so are attributes; `class_` and `data_x` are usual."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(printable(value))}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Markup:
    """Children in a row, escaped where they are not Markup."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(printable(child)) for child in children))


def script_json(value: Any) -> Markup:
    """JSON that can stand inside a script element: no character of it is one that HTML looks at."""
    text = json.dumps(value, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def facts(caption: str, pairs: Iterable[tuple[str, str]]) -> Markup:
    """A table of two columns: what, and its value."""
    rows = [tag("tr", tag("th", key, scope="row"), tag("td", value)) for key, value in pairs]
    return tag("div", tag("table", tag("caption", caption), tag("tbody", *rows)), class_="facts")
