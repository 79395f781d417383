"""`hwnas export` beyond the run's own target: what its options ask for, and what is shown of the result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hwnas.shipping import Wanted
    from hwprof.target import Target

EXPORT_EXAMPLE = "Example: hwnas export runs/quickstart --format onnx --format tflite --precision int8"

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A recipe (TOML), or the folder of its run.")]
TargetText = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="[DEVICE/]RUNTIME[:PRECISION]",
        help="Another target than the recipe's, e.g. litert:int8 or ssh:pi@board/ncnn: its format, checked there.",
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", help="onnx, tensorrt, tflite, ncnn, openvino, ort, pte or pt2; may be repeated."),
]
Precisions = Annotated[
    list[str] | None, typer.Option("--precision", help="fp32, fp16, bf16 or int8, of every format; may be repeated.")
]
Normalise = Annotated[
    str, typer.Option("--normalise", help="inside: the files take pixels, 0 to 255; outside: normalised images.")
]
Networks = Annotated[list[str] | None, typer.Option("--network", help="A trained network by name; else the front.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where to; by default RUN/export.")
]

out = Console()


def recipe_of(run: Path) -> Path:
    """The recipe of RUN, which is a recipe or a run folder."""
    return run / "recipe.toml" if run.is_dir() else run


def wanted_of(
    target: str | None,
    formats: list[str] | None,
    precisions: list[str] | None,
    normalise: str,
    networks: list[str] | None,
    output: Path | None,
) -> Wanted | None:
    """What the options ask for; None if they ask for nothing but the run's own target.

    A target gives its runtime's format, and the precision unless that is given. Raises RecipeError for options that do
    not go together, TargetError and ExportError for a target that cannot be.
    """
    from hwnas.errors import RecipeError

    if normalise not in ("inside", "outside"):
        raise RecipeError(f"--normalise is inside or outside, not {normalise!r}")
    if target is None and not formats:
        others = {"--precision": precisions, "--network": networks, "-o": output, "--normalise": normalise == "inside"}
        if given := [name for name, value in others.items() if value]:
            raise RecipeError(f"{', '.join(given)}: of which files? Give --format or --target, too")
        return None
    from hwnas.export.exporter import format_for
    from hwnas.shipping import Wanted

    parsed = None if target is None else parse_target(target)
    if parsed is not None:
        formats = formats or [format_for(parsed)]
        precisions = precisions or [parsed.precision]
        if formats != [format_for(parsed)]:
            raise RecipeError(
                f"--target {target} runs {format_for(parsed)}, not {', '.join(formats)}: leave out one of the options"
            )
    return Wanted(
        formats=tuple(dict.fromkeys(formats or ())),
        precisions=tuple(dict.fromkeys(precisions or ["fp32"])),
        inside=normalise == "inside",
        target=parsed,
        networks=tuple(dict.fromkeys(networks or ())),
        folder=output,
    )


def parse_target(text: str) -> Target:
    """A target from [DEVICE/]RUNTIME[:PRECISION]. Raises TargetError on a precision that there is not."""
    from hwprof.target import Target

    device, _, rest = text.rpartition("/")
    runtime, _, precision = rest.partition(":")
    return Target(device or "local", runtime, precision or "fp32")


def show(cards: list[dict[str, Any]]) -> None:
    """Print what was shipped, and what is to be known of it: files, in FOLDER/FORMAT/NAME, each with its size.

    The accuracy is that of the file, of the network's; intervals are below their latencies.
    """
    from hwnas.report.deployable import outside
    from hwnas.report.wording import size

    first = Path(cards[0]["path"])
    table = Table(title="Exported", title_justify="left")
    table.add_column("File", overflow="fold")
    for heading in ("Accuracy\n%", "Largest\ndiffer.", "Predicted\nms", "Measured\nms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for card in cards:
        numbers = ["-", "-"]
        if card["not_checked"] is None:
            accuracies = card["accuracy_percent"]["test"], card["module_accuracy_percent"]["test"]
            numbers = ["{:.1f}\nof {:.1f}".format(*accuracies), f"{card['max_logit_difference']:.2g}"]
        compared = card.get("measured_ms") is not None and card["not_compared"] is None
        table.add_row(
            f"{Path(card['path']).name}\n{size(card['size_bytes'])}",
            *numbers,
            _latency(card, "predicted") if compared else "-",
            Text(_latency(card, "measured"), style="bold red" if card["deployable"] is False else ""),
        )
    out.print(table)
    for card in cards:
        name = Path(card["path"]).name
        if card["deployable"] is False:
            out.print(Text(f"NOT DEPLOYABLE: {name}: {card['not_deployable']}", style="bold red"), soft_wrap=True)
        if beside := card.get("outside_interval"):
            out.print(Text(f"warning: {name} is {outside(beside)}", style="yellow"), soft_wrap=True)
    for warning in _no_gain(cards):
        out.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    for key, said in (
        ("not_checked", "written, but not checked"),
        ("not_measured", "written, but not measured"),
        ("not_compared", "compared with no prediction"),
    ):
        for reason in dict.fromkeys(card[key] for card in cards if card.get(key)):
            out.print(Text(f"warning: {said}: {reason}", style="yellow"), soft_wrap=True)
    for warning in dict.fromkeys(each for card in cards for each in card.get("warnings", ())):
        out.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    out.print(f"in {first.parents[2]}; to try one: python {first.parent / 'run.py'} {first} images.npy", soft_wrap=True)


def _no_gain(cards: list[dict[str, Any]]) -> Iterator[str]:
    """What to say of files of fewer bits that were measured to be no faster than the network's in fp32."""
    measured = [card for card in cards if card.get("measured_ms") is not None]
    plain = {(card["name"], card["format"]): card for card in measured if card["precision"] == "fp32"}
    for card in measured:
        other = plain.get((card["name"], card["format"]), card)
        if card is not other and card["measured_ms"] >= other["measured_ms"]:
            both = f"{card['measured_ms']:.4g} ms, and {other['measured_ms']:.4g} ms in fp32"
            yield f"{Path(card['path']).name} takes {both}: {card['precision']} gains nothing here"


def _latency(card: dict[str, Any], kind: str) -> str:
    """The milliseconds with their interval below."""
    from hwnas.report.wording import significant

    value, (low, high) = card.get(f"{kind}_ms"), card.get(f"{kind}_interval_ms", (None, None))
    if value is None:
        return "-"
    return significant(value) + ("" if low is None else f"\n{significant(low)}-{significant(high)}")
