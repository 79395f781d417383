"""The page of one network: its card, readable. Self-contained: works from a file, requests nothing, runs no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from hwnas.card import PROFILED, Card
from hwnas.report.deployable import outside
from hwnas.report.document import ICON, heading, write_page
from hwnas.report.drawing import layer_table, strip
from hwnas.report.markup import Markup, facts, join, tag
from hwnas.report.wording import NOTHING, count, interval, ms, plain, seconds, share, size, target_line

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_card_page(card: Card, path: Path) -> None:
    """Write the page, replacing an older one only when the new one is complete."""
    write_page(card_page(card, path.name), path)


def card_page(card: Card, name: str = "") -> str:
    """The whole page as text; `name` is its file's."""
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<link rel="icon" href="{ICON}">'),
        tag("title", f"{card.name}: hwnas model card"),
        tag("style", *(Markup((files(__package__) / sheet).read_text("utf-8")) for sheet in ("page.css", "card.css"))),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', join(_body(card, name))), lang='en')}\n"


def _body(card: Card, name: str) -> Iterator[Markup]:
    target = target_line(card.measured_on or card.target, card.created)
    yield heading(card.name, _verdict(card), target, _tiles(card), list(_warnings(card)))
    yield Markup("<main>")
    yield tag(
        "section",
        tag("h2", "Layer by layer"),
        tag("p", _where_times_come_from(card), class_="muted"),
        strip(card.layers),
        layer_table(card.layers, card.other_ms),
    )
    yield tag("section", tag("h2", "Accuracy and latency"), _numbers(card))
    yield tag("section", tag("h2", "Training"), *_training(card))
    yield tag("section", tag("h2", "Use"), *_use(card))
    yield tag("section", tag("h2", "Where it comes from"), *_provenance(card, name))
    yield Markup("</main>")
    yield tag("footer", f"Written by hwnas {card.version}. This page requests nothing from any network.")


def _verdict(card: Card) -> str:
    accuracy = "not checked" if card.accuracy is None else f"{card.accuracy:.1f} % accurate on the test images"
    latency = f"{ms(card.measured_ms)} measured" if card.measured_ms else f"{ms(card.predicted_ms)} predicted"
    refused = f"Not deployable: {card.not_deployable}. " if card.deployable is False else ""
    return f"{refused}A network for {card.data}: {accuracy}, {latency}, {count(card.params)} parameters."


def _warnings(card: Card) -> Iterator[str]:
    if card.deployable is False:
        yield f"not deployable: {card.not_deployable}"
    elif card.not_deployable:
        yield f"not known to be deployable: {card.not_deployable}"
    if card.outside_interval:
        yield f"measured {outside(card.outside_interval)}"


def _tiles(card: Card) -> Iterator[tuple[str, str]]:
    yield "Accuracy", NOTHING if card.accuracy is None else f"{card.accuracy:.1f} %"
    yield "Latency, measured", ms(card.measured_ms) if card.measured_ms else "not measured"
    yield "Latency, predicted", ms(card.predicted_ms)
    yield "Deployable", {True: "yes", False: "no", None: "not known"}[card.deployable]
    yield "MACs", count(card.macs)
    yield "Parameters", count(card.params)


def _where_times_come_from(card: Card) -> str:
    origins = {layer.origin for layer in card.layers}
    if origins == {PROFILED}:
        return (
            "Times of the blocks were measured in this architecture on the target, node by node; what the profiler "
            "itself takes is taken off as in the latency table."
        )
    if all(layer.ms is None for layer in card.layers):
        return "The times of single blocks are not known on this target."
    guessed = sum(layer.origin in ("estimated", "imported") for layer in card.layers)
    grey = f", {guessed} of {len(card.layers)} blocks not measured there (grey)" if guessed else ""
    return f"Times of the blocks are from the latency table, measured inside other networks of the space{grey}."


def _numbers(card: Card) -> Markup:
    predicted = interval(card.predicted_ms, *card.predicted_interval_ms)
    sure = f", {card.measured_confidence:.0%} interval" if card.measured_confidence else ""
    by_split = card.accuracy_percent if isinstance(card.accuracy_percent, dict) else {}
    table = card.table
    left = [
        ("Accuracy of the file, test images", NOTHING if card.accuracy is None else f"{card.accuracy:.2f} %"),
        *((f"Accuracy of the file, {split}", f"{value:.2f} %") for split, value in by_split.items() if split != "test"),
        ("Accuracy, validation images", f"{card.valid_accuracy_percent:.2f} %"),
        (f"Latency predicted, {card.predicted_confidence:.0%} interval", predicted),
        (f"Latency measured{sure}", interval(card.measured_ms, *card.measured_interval_ms)),
    ]
    if card.latency_limit_ms is not None:
        left.append(("Latency limit", ms(card.latency_limit_ms)))
    if card.not_measured:
        left.append(("Not measured", card.not_measured))
    if card.not_compared:
        left.append(("Not compared with a prediction", card.not_compared))
    right = [("Table", NOTHING)]
    if table is not None:
        right = [
            ("Table", table.name),
            ("SHA-256", table.sha256),
            ("Rows", count(table.rows)),
            ("Mean error on unseen networks", share(table.mean_error)),
            ("Largest", share(table.max_error)),
            ("Noise floor", share(table.noise_floor)),
        ]
    fingerprint = [(key, str(value)) for key, value in (card.measured_on or card.target).items()]
    tables = tag("div", facts("The network", left), facts("Latency table", right))
    return tag("div", tables, facts("Target", fingerprint), class_="pair")


def _training(card: Card) -> Iterator[Markup]:
    trained = card.training
    pairs = [
        ("Epochs", count(trained.epochs)),
        ("Time", NOTHING if trained.seconds is None else seconds(trained.seconds)),
        ("Loss of the last epoch", NOTHING if trained.train_loss is None else f"{trained.train_loss:.4f}"),
        ("Seed of all randomness", str(card.seed)),
        ("Weights began as", trained.inherited or "random"),
    ]
    lineage = [(one.arch, one.inherited or "from scratch") for one in trained.lineage]
    ancestors = facts("Inherited from, oldest first", lineage) if lineage else Markup()
    yield tag(
        "div", tag("div", facts("Training", pairs), ancestors), tag("figure", *_curve(trained.curve)), class_="pair"
    )
    yield tag("details", tag("summary", "The recipe"), tag("pre", card.recipe), open="")


def _curve(curve: Sequence[float]) -> Iterator[Markup]:
    """Validation accuracy after every epoch."""
    if len(curve) < 2:
        return
    low, high = min(curve), max(curve)
    height = max(high - low, 1e-9)
    points = " ".join(
        f"{40 + 430 * number / (len(curve) - 1):.1f},{140 - 120 * (value - low) / height:.1f}"
        for number, value in enumerate(curve)
    )
    yield tag(
        "svg",
        tag("polyline", points=points),
        tag("text", f"{high:.1f}", x="0", y="24"),
        tag("text", f"{low:.1f}", x="0", y="144"),
        **{"viewBox": "0 0 480 150"},
        class_="curve",
        role="img",
        aria_label=f"Validation accuracy from {curve[0]:.1f} to {curve[-1]:.1f} % in {len(curve)} epochs",
    )
    yield tag("figcaption", f"Validation accuracy (%) after each of {len(curve)} epochs.")


def _use(card: Card) -> Iterator[Markup]:
    shown = [
        *((key, plain(value)) for key, value in card.input.items()),
        ("Classes", ", ".join(card.classes)),
        ("File", card.file or NOTHING),
        ("Size", NOTHING if card.size_bytes is None else size(card.size_bytes)),
        ("SHA-256", card.sha256 or NOTHING),
    ]
    licence = card.data_licence or "not named: the recipe can say it, [data] licence"
    data = [("Data", card.data), ("Licence of the data", licence)]
    choice = [(slot, str(option)) for slot, option in card.choice.items()]
    first = tag("div", facts("Input and output", shown), facts("Data it was trained on", data))
    yield tag("div", first, facts("Architecture", [("options", card.arch), *choice]), class_="pair")


def _provenance(card: Card, name: str) -> Iterator[Markup]:
    yield tag(
        "div", facts("Versions", _pairs(card.versions)), facts("Exported on", _pairs(card.machine)), class_="pair"
    )
    file = name.removesuffix(".html") + ".json" if name else "FILE.json"
    yield tag(
        "p",
        "To train, export and measure it again, from the card beside the file: ",
        tag("code", f"hwnas run --from-card {file}"),
    )


def _pairs(values: Mapping[str, str]) -> list[tuple[str, str]]:
    return list(values.items())
