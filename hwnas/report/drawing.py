"""A network layer by layer: how long each block takes, and what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hwnas.card import Layer
from hwnas.report.markup import Markup, tag
from hwnas.report.wording import NOTHING, count, share, significant

COLUMNS = (
    ("#", "number"),
    ("Block", ""),
    ("In", ""),
    ("Out", ""),
    ("MACs", "number"),
    ("Parameters", "number"),
    ("ms", "number"),
    ("Share of the time", ""),
)
# What a block's key says that its shapes say, too.
_SHAPES = {"size", "in_channels", "out_channels"}
_WIDTH, _HEIGHT, _LOWEST, _LABEL = 1000.0, 120.0, 14.0, 0.07


def strip(layers: Sequence[Layer]) -> Markup:
    """All blocks in a row: as wide as their share of the time, as high as their output; nothing without shares."""
    shares = [layer.share for layer in layers if layer.share is not None]
    total = sum(shares)
    if len(shares) < len(layers) or total <= 0:
        return Markup()
    largest = max(_pixels(layer) for layer in layers)
    left, drawn = 0.0, []
    for number, (layer, part) in enumerate(zip(layers, shares, strict=True)):
        width = _WIDTH * part / total
        height = max(_LOWEST, _HEIGHT * _pixels(layer) / largest)
        place = {"x": f"{left:.2f}", "width": f"{width:.2f}", "y": f"{_HEIGHT - height:.2f}", "height": f"{height:.2f}"}
        title = tag("title", f"{number} {layer.position}: {share(part)}, output {shape(layer.output)}")
        drawn.append(tag("rect", title, **place, class_=f"block {_kind(layer)}"))
        if part >= _LABEL:
            middle = {"x": f"{left + width / 2:.2f}", "y": f"{_HEIGHT + 16:.0f}", "text_anchor": "middle"}
            drawn.append(tag("text", str(number), **middle))
        left += width
    about = f"{len(layers)} blocks from the image to the classes: a wide one takes long, a high one has a large output."
    box = f"0 0 {_WIDTH:.0f} {_HEIGHT + 22:.0f}"
    picture = tag("svg", *drawn, **{"viewBox": box}, class_="strip", role="img", aria_label=about)
    return tag("figure", picture, tag("figcaption", about))


def layer_table(layers: Sequence[Layer], other_ms: Mapping[str, float]) -> Markup:
    """A row for each block with a bar of its share, and below what is no block's."""
    headings = [tag("th", name, scope="col", class_=kind) for name, kind in COLUMNS]
    rows = [*_rows(layers), *(_other(name, ms) for name, ms in other_ms.items())]
    table = tag(
        "table",
        tag("caption", "Every block"),
        tag("thead", tag("tr", *headings)),
        tag("tbody", *rows),
        class_="layers",
    )
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Layer by layer")


def described(key: str) -> str:
    """A block's key in words, without its shapes: 'mbconv, kernel 3, stride 2, mid channels 48 (x 3), relu, se 0'."""
    kind, _, rest = key.partition(":")
    settings = dict(pair.partition("=")[::2] for pair in rest.split(",")) if rest else {}
    words = [kind]
    for name, value in settings.items():
        if name in _SHAPES or not value:
            continue
        text = value if name == "activation" else f"{name.replace('_', ' ')} {value}"
        words.append(text + (_expansion(value, settings.get("in_channels", "")) if name == "mid_channels" else ""))
    return ", ".join(words)


def shape(sizes: Sequence[int]) -> str:
    """A shape without the batch: '24 x 56 x 56'."""
    return " × ".join(map(str, sizes))


def _rows(layers: Sequence[Layer]) -> Iterator[Markup]:
    for number, layer in enumerate(layers):
        notes = [described(layer.key)]
        if layer.reads != (number - 1,):
            notes.append("reads " + " and ".join("the image" if source < 0 else str(source) for source in layer.reads))
        if layer.origin in ("estimated", "imported"):
            notes.append(f"its time is {layer.origin}")
        yield tag(
            "tr",
            tag("td", str(number), class_="number"),
            tag("td", layer.position, *(tag("small", note) for note in notes)),
            tag("td", *(tag("div", shape(one)) for one in layer.inputs)),
            tag("td", shape(layer.output)),
            tag("td", count(layer.macs), class_="number"),
            tag("td", count(layer.params), class_="number"),
            tag("td", significant(layer.ms) if layer.ms else NOTHING, class_="number"),
            _bar(layer),
        )


def _bar(layer: Layer) -> Markup:
    if layer.share is None:
        return tag("td", NOTHING)
    bar = tag("div", class_=f"bar {_kind(layer)}", style=f"width:{100 * min(layer.share, 1.0):.2f}%")
    return tag("td", tag("div", bar, class_="track"), tag("small", share(layer.share)))


def _other(name: str, ms: float) -> Markup:
    shown = f"{'-' if ms < 0 else ''}{significant(abs(ms))}" if ms else "0"
    empty = [tag("td") for _ in COLUMNS[2:6]]
    return tag("tr", tag("td"), tag("td", name), *empty, tag("td", shown, class_="number"), tag("td"))


def _kind(layer: Layer) -> str:
    """A class of the style sheet; nothing of a card's own text gets there."""
    return "guessed" if layer.origin in ("estimated", "imported") else "known"


def _pixels(layer: Layer) -> float:
    """Height of the output, a square; 1 where it has none."""
    return float(max(1, layer.output[-1])) if len(layer.output) > 1 else 1.0


def _expansion(mid_channels: str, in_channels: str) -> str:
    if not (mid_channels.isdecimal() and in_channels.isdecimal() and int(in_channels[:9])):
        return ""
    return f" (× {int(mid_channels[:9]) / int(in_channels[:9]):.3g})"
