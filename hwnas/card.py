"""The model card of an exported network as a file: what it is, how it came about, and what was measured of it.

It lies as FILE.json beside the exported file. Keys that are not known here are passed over: formats of export add their
own. A card may come from anybody: reading one runs nothing and opens no file that it names.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, with_config

from hwnas.errors import RunError
from hwnas.printable import printable
from hwnas.saved import EXACT, from_text, to_text
from hwnas.space import Option

# A card is some tens of kilobytes; what is larger was not written here.
LARGEST_BYTES = 4 << 20
# Of a network's ancestors: a search that inherits makes one generation after the other.
MOST_ANCESTORS = 1000

# The `origin` of layers that were measured in this very network.
PROFILED = "profiled"

OPEN = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
Count = Annotated[int, Field(ge=0, le=2**53)]
ArchText = Annotated[str, Field(pattern=r"^[0-9]{1,6}(-[0-9]{1,6})*$", max_length=10_000)]
Milliseconds = Annotated[float, Field(gt=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Interval = tuple[float | None, float | None]


def _finite(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    json.dumps(value, allow_nan=False)  # JsonValue alone lets NaN pass
    return value


Facts = Annotated[dict[str, JsonValue], AfterValidator(_finite)]


@with_config(EXACT)
@dataclass(frozen=True)
class Layer:
    """A block of the network: shapes without the batch, `reads` the numbers of the layers it reads, -1 the image.

    `ms` is its part of one inference, `share` that of all layers' ms; None where blocks were not measured. `origin`:
    "profiled" in this very network, or a row of the latency table that was "measured", "estimated" or "imported".
    """

    position: str
    key: str
    inputs: tuple[tuple[Count, ...], ...]
    output: tuple[Count, ...]
    reads: tuple[Annotated[int, Field(ge=-1)], ...]
    macs: Count
    params: Count
    ms: Annotated[float, Field(ge=0)] | None
    share: Annotated[float, Field(ge=0, le=1)] | None
    origin: str


@with_config(EXACT)
@dataclass(frozen=True)
class Ancestor:
    """A network that weights were inherited from: its architecture, and its validation accuracy in percent."""

    arch: ArchText
    valid_accuracy_percent: Percent | None
    inherited: str | None


@with_config(EXACT)
@dataclass(frozen=True)
class Training:
    """What training the network took, as far as its trial says: `curve` is validation accuracy (%) after every epoch.

    `inherited` is the step from the last of the `lineage` (oldest first) in words; without one it began from scratch.
    """

    epochs: Count | None
    seconds: Annotated[float, Field(ge=0)] | None
    train_loss: float | None
    test_accuracy_percent: Percent | None
    curve: tuple[Percent, ...]
    inherited: str | None
    lineage: Annotated[tuple[Ancestor, ...], Field(max_length=MOST_ANCESTORS)]


@with_config(EXACT)
@dataclass(frozen=True)
class TableUsed:
    """The latency table that predicted: its name and digest, and how well it did on networks it had not seen."""

    name: str
    sha256: str
    rows: Count
    held_out: Count | None
    mean_error: float | None
    max_error: float | None
    noise_floor: float | None


@with_config(OPEN)
@dataclass(frozen=True)
class Card:
    """A network of a run's front. Accuracies in percent, latencies in ms, `confidence` of an interval a fraction.

    `recipe` is the TOML text that was run, `seed` the one number that all of its randomness follows from, `machine` the
    one that exported. `other_ms` is what the table adds to the layers: what every inference costs, and what is fused
    across blocks; where the table could not be had (its device was away), neither is known. What has a default is of
    one file: `accuracy_percent` is that on the test set (or by split). Where prediction and measurement are of another
    target than the run's, `measured_on` is that one, and there is no prediction without a table of it; `not_compared`
    says why a measurement has none to be compared with. `outside_interval` is "slower" or "faster". `deployable` is
    None where it is not known, `not_deployable` why it is not, or why that is not known.
    """

    version: str
    name: str
    run: str
    created: str
    space: Facts
    arch: ArchText
    choice: dict[str, Option]
    target: dict[str, Option]
    valid_accuracy_percent: Percent
    predicted_ms: Milliseconds | None
    predicted_interval_ms: Interval
    predicted_confidence: float
    macs: Count
    params: Count
    data: str
    data_licence: str | None
    classes: tuple[str, ...]
    input: Facts
    seed: Count
    versions: dict[str, str]
    machine: dict[str, str]
    training: Training
    layers: tuple[Layer, ...]
    other_ms: dict[str, float]
    table: TableUsed | None
    recipe: str
    accuracy_percent: Percent | dict[str, Percent] | None = None
    max_logit_difference: float | None = None
    measured_ms: Milliseconds | None = None
    measured_interval_ms: Interval = (None, None)
    measured_confidence: float | None = None
    not_measured: str | None = None
    measured_on: dict[str, Option] | None = None
    not_compared: str | None = None
    outside_interval: str | None = None
    latency_limit_ms: Milliseconds | None = None
    within_limit: bool | None = None
    deployable: bool | None = None
    not_deployable: str | None = None
    file: str | None = None
    size_bytes: Count | None = None
    sha256: str | None = None

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the exported file on the test set, in percent; None where no file was checked."""
        found = self.accuracy_percent
        return found.get("test") if isinstance(found, dict) else found

    def facts(self) -> dict[str, Any]:
        """What is known before there is a file, as plain values; files add theirs. Raises what `to_json` raises."""
        values: dict[str, Any] = json.loads(self.to_json())
        return {each.name: values[each.name] for each in fields(self) if each.default is MISSING}

    def to_json(self) -> str:
        """The card as JSON text. Raises RunError, naming the key, if a value is not fit to be saved (NaN, ...)."""
        return to_text(self, RunError, "the card to be saved")

    @classmethod
    def from_json(cls, text: str, source: str = "the card") -> Card:
        """The inverse of `to_json`. Raises RunError naming `source` and the first bad key."""
        return from_text(cls, text, RunError, source)


def read_card(path: Path) -> Card:
    """Read the card beside an exported file. Raises RunError if it is not one."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not a card: {error}; cards are beside exported files, as FILE.json") from error
    if len(content) > LARGEST_BYTES:
        raise RunError(f"{path} is no card: it is longer than {LARGEST_BYTES} bytes")
    try:
        return Card.from_json(text, str(path))
    except RunError as error:
        raise RunError(printable(str(error))) from None
