"""What a validation of a latency table found: the contract between measuring (`latency`) and showing it (`report`).

Errors are predicted / measured - 1, fractions: above zero the table says too much. Times are ms on the table's scale.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, JsonValue, with_config

from hwnas.errors import PredictorError
from hwnas.saved import EXACT, from_text, to_text
from hwnas.space import Option

SCHEMA: Literal["hwnas-table-validation"] = "hwnas-table-validation"
VERSION: Literal[1] = 1

Drawn = Literal["uniform", "spread", "searched"]
Fit = Literal["as promised", "too few inside", "wider than needed"]
Judgement = Literal["holds", "biased", "in doubt", "does not hold", "not judged"]


def _finite(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    json.dumps(value, allow_nan=False)  # JsonValue alone lets NaN pass
    return value


@with_config(EXACT)
@dataclass(frozen=True)
class NetworkResult:
    """One unseen network: predicted with its bounds, measured now (95% interval), and again in a second session.

    `drawn` says how it was chosen. Bounds are None where the table gives none; a measurement is None where it was
    refused or not made, with the reason in `refused` and `again_refused`.
    """

    arch: str
    choice: dict[str, Option]
    drawn: Drawn
    predicted_ms: float
    low_ms: float | None
    high_ms: float | None
    upper_ms: float | None
    measured_ms: float | None
    measured_low_ms: float | None
    measured_high_ms: float | None
    refused: str | None
    again_ms: float | None
    again_refused: str | None
    anchor_drift: float | None

    @property
    def error(self) -> float | None:
        """predicted / measured - 1; None where nothing was measured."""
        return None if self.measured_ms is None else self.predicted_ms / self.measured_ms - 1

    @property
    def mean_ms(self) -> float | None:
        """The geometric mean of both sessions, or what was measured of it; None where nothing was."""
        if self.measured_ms is None or self.again_ms is None:
            return self.measured_ms
        return math.sqrt(self.measured_ms * self.again_ms)


@with_config(EXACT)
@dataclass(frozen=True)
class Coverage:
    """How many of `networks` measurements a bound held: `inside`, beside the `nominal` fraction it promises.

    `low` and `high` are the 95% binomial interval (Clopper and Pearson) of the fraction held. `fit` says whether the
    promise is kept as far as these networks and the `calibrated` ones, whose quantile the bound is, can tell.
    """

    nominal: float
    inside: int
    networks: int
    calibrated: int
    low: float
    high: float
    fit: Fit


@with_config(EXACT)
@dataclass(frozen=True)
class Agreement:
    """Predicted against measured over `networks`; `_low` and `_high` are 95% bootstrap intervals over networks.

    `bias` is the geometric mean of predicted / measured, less 1; `unbiased_error` the mean error once it is taken out.
    `noise_floor` is the mean |second session / first - 1| of `repeated` networks: nothing predicts better.
    Rank correlations are None for fewer than three networks.
    """

    networks: int
    mean_error: float
    mean_error_low: float
    mean_error_high: float
    median_error: float
    max_error: float
    within_5_percent: float
    within_10_percent: float
    bias: float
    bias_low: float
    bias_high: float
    unbiased_error: float
    spearman: float | None
    kendall: float | None
    repeated: int
    noise_floor: float | None


@with_config(EXACT)
@dataclass(frozen=True)
class BlockError:
    """A block of a badly predicted network, profiled again: what the table says, what it takes now.

    `table_ms` is what the prediction counts for it, `table_profiled_ms` and `profiled_ms` the profiler's times then and
    now, freed of what the profiler itself takes more or less today. `excess_ms` is what the table has too much: their
    difference, times what the network's blocks take without the profiler for each ms with it. `share` is that as a
    fraction of the network's error in ms.
    """

    position: str
    key: str
    origin: str
    table_ms: float
    table_profiled_ms: float
    profiled_ms: float
    excess_ms: float
    share: float


@with_config(EXACT)
@dataclass(frozen=True)
class WorstCase:
    """A network whose error is beyond the noise, with the blocks that explain most of it (largest first).

    `measured_ms` is the mean of both sessions, and what `error` is relative to; `beyond_noise` is what is left of
    |error| after twice the noise. `explained` is the share of the error in ms that all blocks together explain;
    `not_profiled` says why there are none.
    """

    arch: str
    predicted_ms: float
    measured_ms: float
    error: float
    beyond_noise: float
    explained: float | None
    blocks: tuple[BlockError, ...]
    not_profiled: str | None


@with_config(EXACT)
@dataclass(frozen=True)
class SystematicError:
    """A block, or an option of a slot, whose presence goes with an error over all networks.

    `error` is how far the table is off for it: of the block's own time, or of the whole network's for an option.
    `p_value` is corrected for the number of blocks and options tried; `alike` others cannot be told from it.
    """

    kind: Literal["block", "option"]
    name: str
    origin: str
    networks: int
    error: float
    standard_error: float
    p_value: float
    alike: int


@with_config(EXACT)
@dataclass(frozen=True)
class Promise:
    """What the table says of itself: its error and noise floor on held-out networks, measured with it."""

    networks: int
    mean_error: float
    noise_floor: float


@with_config(EXACT)
@dataclass(frozen=True)
class TableValidation:
    """A whole validation. `created` is an ISO 8601 time, `anchor_drift` how much slower the anchors ran than then.

    `interval` and `upper` are None where the table gives no such bound; `notes` say that, and all else that is lacking.
    """

    schema: Literal["hwnas-table-validation"]
    version: Literal[1]
    hwnas: str
    created: str
    command: str
    table: str
    table_created: str
    rows: int
    estimated_rows: int
    target: dict[str, Option]
    space: Annotated[dict[str, JsonValue], AfterValidator(_finite)]
    seed: int
    seconds: float
    promise: Promise | None
    networks: tuple[NetworkResult, ...]
    agreement: Agreement | None
    by_draw: dict[Drawn, float]
    interval: Coverage | None
    upper: Coverage | None
    anchor_drift: float | None
    worst: tuple[WorstCase, ...]
    systematic: tuple[SystematicError, ...]
    judgement: Judgement
    verdict: str
    notes: tuple[str, ...]

    @property
    def measured(self) -> tuple[NetworkResult, ...]:
        """The networks that were measured, largest error first."""
        found = [network for network in self.networks if network.measured_ms is not None]
        return tuple(sorted(found, key=lambda network: -abs(network.error or 0.0)))

    @property
    def refused(self) -> tuple[NetworkResult, ...]:
        """The networks whose first measurement was refused."""
        return tuple(network for network in self.networks if network.refused is not None)

    def to_json(self) -> str:
        """As JSON text. Raises PredictorError, naming the key, if a value is not fit to be saved (NaN, ...)."""
        return to_text(self, PredictorError, "the validation to be saved")

    @classmethod
    def from_json(cls, text: str, source: str = "the validation") -> TableValidation:
        """The inverse of `to_json`. Raises PredictorError naming `source` and the first bad key."""
        return from_text(cls, text, PredictorError, source)
