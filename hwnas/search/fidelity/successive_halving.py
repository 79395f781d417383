"""`successive_halving`: asynchronous successive halving over epochs, with several objectives.

ASHA (Li et al. 2018, arXiv 1810.05934): rungs at min_epochs * eta^k epochs; of those that reached a rung the best 1/eta
go on. Several objectives as in MO-ASHA (Schmucker et al. 2021, arXiv 2106.12639): "best" is the nondominated rank of
the values at the rung, then how crowded a place is (`standing.py`). Deviations:
- ASHA pauses what is not among the best and may promote it later. Here a training is judged once, when it reaches the
  rung, against those that have reached it by then, and stopped for good: the first to come find few rivals and go on
  easily, which costs epochs and no accuracy. At least one of a rung goes on.
- A training on the front at its rung goes on even if that front is more than 1/eta of the rung. With one objective that
  is the best alone; with two or three, fewer are stopped than 1 - 1/eta.
- A latency or another objective known before training counts with its value at every rung, and so does its limit; the
  limit of the learned objective counts only at the end of a training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.search.fidelity.standing import SPREADS, Spread, standing
from hwnas.search.fidelity.stopper import (
    Decision,
    Training,
    check_settings,
    known_violations,
    learned_column,
    rivals,
    values_of,
    whole,
)
from hwnas.search.problem import Objective, to_losses


@dataclass(frozen=True, kw_only=True)
class SuccessiveHalving:
    """At each rung the best 1/eta go on. `min_epochs`: the first rung; None: after a quarter of the epochs, rounded up.

    `eta` is 2 unless asked otherwise, below the 3 or 4 of the paper: on the real curves of
    `benchmarks/multi_fidelity.py` that saves nearly as much and loses much less of the front.

    Raises RecipeError on settings that leave no rung before `max_epochs`.
    """

    max_epochs: int
    eta: int = 2
    min_epochs: int | None = None
    spread: Spread = "crowding"

    def __post_init__(self) -> None:
        check_halving("successive_halving", self.max_epochs, self.eta, self.min_epochs, self.spread)

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs after which a training is judged, ascending; all before the last epoch."""
        found = [first_rung(self.max_epochs, self.min_epochs)]
        while found[-1] * self.eta < self.max_epochs:
            found.append(found[-1] * self.eta)
        return tuple(found)

    def decide(self, training: Training, others: Sequence[Training], objectives: Sequence[Objective]) -> Decision:
        """Stop a training that is at a rung, not on its front, and not among its best 1/eta."""
        learned_column(training, objectives)  # wrong objectives are said at once, not at the first rung
        if training.epochs not in self.rungs:
            return Decision(False, f"epoch {training.epochs} is no rung; rungs: {self.rungs}")
        return judge(training, others, objectives, self.eta, self.spread)


def judge(
    training: Training, others: Sequence[Training], objectives: Sequence[Objective], eta: int, spread: Spread
) -> Decision:
    """The decision at a rung, which is where `training` is, among the `others` that have a value there."""
    epoch = training.epochs
    if not math.isfinite(training.value_at(epoch)):
        return Decision(False, f"epoch {epoch}: its value is {training.value_at(epoch)}, which cannot be judged")
    column = learned_column(training, objectives)
    field = [other for other in rivals(training, others, objectives) if math.isfinite(other.value_at(epoch))]
    field.append(training)  # last, so that of equals those that came before it are first
    values = values_of(field, np.array([one.value_at(epoch) for one in field]), objectives)
    violation = known_violations(values, column, objectives)
    found = standing(to_losses(values, objectives), violation, spread)
    rank, place = int(found.rank[-1]), int(found.place[-1])
    go_on = max(1, len(field) // eta)
    words = f"epoch {epoch}: place {place + 1} of {len(field)}, of which the best {go_on} go on"
    if place < go_on:
        return Decision(False, words)
    if rank == 0 and violation[-1] == 0:
        return Decision(False, f"{words}; on the front, so it goes on too")
    limits = "; it breaks a limit" if violation[-1] > 0 else ""
    return Decision(True, f"{words}; front {rank + 1} of {int(found.rank.max()) + 1}{limits}")


def first_rung(max_epochs: int, min_epochs: int | None) -> int:
    """`min_epochs`, or a quarter of the epochs if that is None.

    Earlier than that, learning rates are high and curves noisy: in `benchmarks/multi_fidelity.py`, where networks end
    within four points of accuracy, most of what a first rung after one of 16 epochs stopped would have been on the
    front, and even after four halving loses as much hypervolume as stopping as many at random.
    """
    return -(-max_epochs // 4) if min_epochs is None else min_epochs


def check_halving(rule: str, max_epochs: int, eta: int, min_epochs: int | None, spread: str) -> None:
    """Raises RecipeError on settings that successive halving cannot use."""
    check_settings(
        rule,
        [
            ("max_epochs", max_epochs, whole(max_epochs, 2), "at least 2, or the rule 'none'"),
            ("eta", eta, whole(eta, 2), "a whole number of at least 2"),
            ("min_epochs", min_epochs, min_epochs is None or whole(min_epochs, 1), "a whole number of at least 1"),
            ("spread", spread, spread in SPREADS, f"one of {SPREADS}"),
        ],
    )
    first = first_rung(max_epochs, min_epochs)
    check_settings(rule, [("min_epochs", first, first < max_epochs, f"below the {max_epochs} epochs of a training")])
