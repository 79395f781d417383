"""What a finished run has to say, as one JSON file: the contract between the pipeline and the report.

Nothing is guessed when it is read: a key that is missing, unknown or of another type is an error that names it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, JsonValue, with_config

from hwnas.errors import RunError
from hwnas.report.deployable import Verdict, beside_interval, judge
from hwnas.saved import EXACT, from_text, to_text
from hwnas.space import Option

LATENCY_LIMIT = "latency_ms"
"""The key of `RunSummary.limits` that bounds latency."""


def _finite(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    json.dumps(value, allow_nan=False)  # JsonValue alone lets NaN pass
    return value


@with_config(EXACT)
@dataclass(frozen=True)
class NetworkRow:
    """One exported network of the front. Accuracies in percent, latencies in ms, `file` relative to the run folder.

    Either `measured_ms` is given or `refused` says why there is no measurement. `accuracy` is that of the exported file
    on the test set, `valid_accuracy` the one the search went by. Raises RunError where that does not hold.

    `precision` is the file's; blocks at the positions `in_float` are not in it. `within_drop` is False where it loses
    more accuracy than the recipe allows. Summaries of before there were several precisions do not say.
    """

    name: str
    arch: str
    choice: dict[str, Option]
    accuracy: float
    valid_accuracy: float
    predicted_ms: float
    predicted_low_ms: float | None
    predicted_high_ms: float | None
    measured_ms: float | None
    measured_low_ms: float | None
    measured_high_ms: float | None
    refused: str | None
    macs: int
    params: int
    file: str
    size_bytes: int
    within_limit: bool | None
    precision: str | None = None
    in_float: tuple[str, ...] = ()
    within_drop: bool = True

    def __post_init__(self) -> None:
        if (self.measured_ms is None) != bool(self.refused):
            raise RunError(
                f"network {self.name!r} needs either measured_ms or, in refused, the reason why there is none; "
                f"got measured_ms={self.measured_ms}, refused={self.refused!r}"
            )
        if self.measured_ms is not None and self.measured_ms <= 0:
            raise RunError(f"measured_ms of network {self.name!r} must be above 0, got {self.measured_ms}")
        if self.file.startswith("/") or "\\" in self.file:
            raise RunError(f'file of network {self.name!r} must be a relative path with "/" in it, got {self.file!r}')

    @property
    def error(self) -> float | None:
        """predicted / measured - 1, a fraction; None where nothing was measured."""
        return None if self.measured_ms is None else self.predicted_ms / self.measured_ms - 1

    @property
    def verdict(self) -> Verdict:
        """Whether the file may be called deployable, and why not."""
        return judge(self.within_limit, self.within_drop, self.refused and f"not measured: {self.refused}")

    @property
    def outside_interval(self) -> str | None:
        """ "slower" or "faster" than its prediction interval, as measured; None inside, or where that is not known."""
        return beside_interval(self.measured_ms, self.predicted_low_ms, self.predicted_high_ms)


@with_config(EXACT)
@dataclass(frozen=True)
class Candidate:
    """One evaluated architecture: scores by name, predicted ms, validation accuracy in percent if it was trained."""

    arch: str
    scores: dict[str, float]
    predicted_ms: float
    valid_accuracy: float | None


@with_config(EXACT)
@dataclass(frozen=True)
class TableFacts:
    """The latency table that predicted, and how well it did on held-out networks. Errors and noise are fractions.

    `searched_error` is the mean error on networks that were chosen as a search would (None in older tables).
    """

    path: str
    rows: int | None
    held_out: int | None
    mean_error: float | None
    max_error: float | None
    noise_floor: float | None
    searched_error: float | None = None


@with_config(EXACT)
@dataclass(frozen=True)
class RunSummary:
    """A whole run: `target` is the fingerprint of the device, `limits` the recipe's (latency under LATENCY_LIMIT).

    `without_vote` has the scores that were not combined, as they disagree with the others: name and agreement.
    `created` is an ISO 8601 time, `seconds` the wall time by stage, `recipe` the TOML text that was run.
    """

    name: str
    created: str
    version: str
    space: Annotated[dict[str, JsonValue], AfterValidator(_finite)]
    target: dict[str, Option]
    limits: dict[str, float]
    networks: tuple[NetworkRow, ...]
    candidates: tuple[Candidate, ...]
    without_vote: dict[str, float]
    table: TableFacts
    seconds: dict[str, float]
    recipe: str
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """The summary as JSON text. Raises RunError, naming the key, if a value is not fit to be saved (NaN, ...)."""
        return to_text(self, RunError, "the summary to be saved")

    @classmethod
    def from_json(cls, text: str, source: str = "the run summary") -> RunSummary:
        """The inverse of `to_json`. Raises RunError naming `source` and the first bad key."""
        return from_text(cls, text, RunError, source)
