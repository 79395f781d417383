"""What a card recorded beside what came out when its network was trained, exported and measured again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from hwnas.card import Card, Interval
from hwnas.report.plots import TOLERANCE
from hwnas.report.wording import NOTHING, interval, share

# What the numbers of a training follow from, beside recipe and data.
PACKAGES = ("hwnas", "torch", "torchvision", "numpy", "scikit-learn")
# Two trainings that differ in rounding differ like two samples of networks: so many standard errors are no surprise.
_SURPRISE = 3.0


@dataclass(frozen=True)
class Compared:
    """One number then and now; `holds` None where the two cannot be compared, and the remark says why."""

    what: str
    recorded: str
    reproduced: str
    holds: bool | None
    remark: str


@dataclass(frozen=True)
class Reproduction:
    """A network's numbers then and now, and whether the card's hold."""

    network: str
    compared: tuple[Compared, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the card."""
        return all(one.holds is not False for one in self.compared)

    @property
    def verdict(self) -> str:
        """The comparison in one sentence."""
        said = "; ".join(f"{one.what} {one.remark}" for one in self.compared)
        return f"{'Reproduced' if self.holds else 'Not reproduced'}: {said}."


def compare(card: Card, again: Card, images: tuple[int, int], reasons: Sequence[str] = ()) -> Reproduction:
    """A card beside that of the same network trained again.

    `images`: how many validation and test images there are. `reasons`: why accuracies may differ, beside what the cards
    say of versions and machines.
    """
    data = [key for key in ("mean", "std") if card.input.get(key) != again.input.get(key)]
    why = [*reasons, *training_differences(card, again)]
    # Cards of other formats have their files' accuracies by split: eight bits are no wrong training.
    of_the_file = None if isinstance(card.accuracy_percent, dict) else card.accuracy
    accuracies = (
        ("validation accuracy", card.valid_accuracy_percent, again.valid_accuracy_percent, images[0]),
        ("accuracy of the file", of_the_file, again.accuracy, images[1]),
    )
    rows = [_accuracy(what, then, now, count, bool(data), why) for what, then, now, count in accuracies]
    return Reproduction(again.name, (*rows, _latency(card, again)))


def training_differences(card: Card, again: Card) -> Iterator[str]:
    """What differs between two trainings of one recipe, in words."""
    for name in PACKAGES:
        then, now = card.versions.get(name), again.versions.get(name)
        if then != now:
            yield f"{name} {then!r:.40} then, {now!r} now"
    for name in ("cpu", "gpu"):
        then, now = card.machine.get(name), again.machine.get(name)
        if then != now:
            yield f"{name} {then!r:.60} then, {now!r} now"


def reproduction_table(result: Reproduction) -> Table:
    """The comparison for the terminal. Texts are shown as they are, never read as rich markup."""
    table = Table(title=f"{result.network}: the card, and again", title_justify="left")
    for heading in ("", "Card", "Again", ""):
        table.add_column(heading, overflow="fold")
    for one in result.compared:
        style = {True: "green", False: "bold red", None: "yellow"}[one.holds]
        table.add_row(one.what, Text(one.recorded), Text(one.reproduced), Text(one.remark, style=style))
    return table


def _accuracy(
    what: str, then: float | None, now: float | None, images: int, other_data: bool, why: Sequence[str]
) -> Compared:
    shown = (_percent(then), _percent(now))
    if then is None or now is None:
        return Compared(what, *shown, None, "cannot be compared: the card's file is of another format or not checked")
    off = abs(now - then)
    if other_data:
        holds, remark = False, "is that on other images than the card's: their mean or deviation differs"
    elif off < 1e-6:
        holds, remark = True, "is the same"
    elif not why:
        holds, remark = False, f"differs by {off:.2f} points, though recipe, data, versions and machine are the same"
    else:
        rate = min(max(then / 100, 1 / images), 1 - 1 / images)
        margin = 100 * _SURPRISE * math.sqrt(2 * rate * (1 - rate) / images)
        holds = off <= margin
        than = "no more than" if holds else "more than"
        remark = f"differs by {off:.2f} points, {than} {margin:.2f} on {images} images ({'; '.join(why)})"
    return Compared(what, *shown, holds, remark)


def _latency(card: Card, again: Card) -> Compared:
    what = "measured latency"
    shown = _measured(card), _measured(again)
    if card.measured_ms is None or again.measured_ms is None:
        missing = again.not_measured if again.measured_ms is None else card.not_measured
        why = f"{missing!r:.200}" if missing else "the card's file was not measured"
        return Compared(what, *shown, None, f"cannot be compared: {why}")
    there, here = card.measured_on or card.target, again.measured_on or again.target
    differing = [key for key in sorted({*there, *here} - {"device"}) if there.get(key) != here.get(key)]
    if differing:
        key = differing[0]
        then, now = there.get(key), here.get(key)
        return Compared(
            what, *shown, None, f"is that of another target: {key!r} is {then!r:.60} there, {now!r:.60} here"
        )
    off = again.measured_ms / card.measured_ms - 1
    holds = abs(off) <= TOLERANCE or _overlap(card.measured_interval_ms, again.measured_interval_ms)
    return Compared(what, *shown, holds, f"is {share(off, sign=True)} off the card's")


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f} %"


def _measured(card: Card) -> str:
    return interval(card.measured_ms, *card.measured_interval_ms)


def _overlap(one: Interval, other: Interval) -> bool:
    bounds = [bound for bound in (*one, *other) if bound is not None]
    return len(bounds) == 4 and max(bounds[0], bounds[2]) <= min(bounds[1], bounds[3])
