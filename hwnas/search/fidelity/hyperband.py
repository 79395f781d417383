"""`hyperband`: several successive halvings side by side, from early stopping to none.

Hyperband (Li et al. 2018, JMLR 18(185), algorithm 1): how early a curve tells the end is not known, so trainings are
spread over brackets s = s_max..0; bracket s has rungs at R eta^-s, ..., R eta^-1 epochs, and
n_s = ceil((s_max + 1) eta^s / (s + 1)) trainings begin in it (table 1), so that all brackets cost about the same.
s_max = floor(log_eta(R / min_epochs)) with R = max_epochs; bracket 0 stops nothing.

Here asynchronous, on ASHA (arXiv 1810.05934): a training's bracket follows from its number alone, brackets being dealt
in the proportions n_s, well mixed rather than one bracket after the other, since a search may end at any number. Within
a bracket, `successive_halving` with its deviations. Rungs are rounded to whole epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hwnas.search.fidelity.standing import Spread
from hwnas.search.fidelity.stopper import Decision, Training, check_settings, learned_column
from hwnas.search.fidelity.successive_halving import check_halving, first_rung, judge
from hwnas.search.problem import Objective


@dataclass(frozen=True, kw_only=True)
class Hyperband:
    """Brackets of successive halving. No rung is before `min_epochs`; None: before a quarter of the epochs.

    Raises RecipeError on settings that leave no bracket that stops anything.
    """

    max_epochs: int
    eta: int = 2
    min_epochs: int | None = None
    spread: Spread = "crowding"

    def __post_init__(self) -> None:
        check_halving("hyperband", self.max_epochs, self.eta, self.min_epochs, self.spread)
        most, first = self.max_epochs // self.eta, first_rung(self.max_epochs, self.min_epochs)
        expected = f"at most max_epochs / eta, which is {most}"
        check_settings("hyperband", [("min_epochs", first, first <= most, expected)])

    @property
    def s_max(self) -> int:
        """The number of the bracket that stops earliest: floor(log_eta(max_epochs / min_epochs))."""
        s = 0
        while first_rung(self.max_epochs, self.min_epochs) * self.eta ** (s + 1) <= self.max_epochs:
            s += 1
        return s

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many trainings begin in brackets 0, 1, ..., s_max in one round of Hyperband."""
        brackets = self.s_max + 1
        return tuple(-(-brackets * self.eta**s // (s + 1)) for s in range(brackets))

    def rungs(self, bracket: int) -> tuple[int, ...]:
        """The epochs at which bracket s judges: max_epochs * eta^-k for k = s..1, rounded; none in bracket 0."""
        return tuple(int(self.max_epochs / self.eta**k + 0.5) for k in range(bracket, 0, -1))

    def bracket_of(self, number: int) -> int:
        """The bracket to which the training of that number belongs."""
        turns = _turns(self.sizes)
        return turns[number % len(turns)]

    def decide(self, training: Training, others: Sequence[Training], objectives: Sequence[Objective]) -> Decision:
        """Stop a training that is at a rung of its bracket and not among the best of the bracket there."""
        learned_column(training, objectives)  # wrong objectives are said at once, not at the first rung
        bracket = self.bracket_of(training.number)
        rungs = self.rungs(bracket)
        if training.epochs not in rungs:
            where = f"rungs: {rungs}" if rungs else "it has none"
            return Decision(False, f"epoch {training.epochs} is no rung of bracket {bracket}; {where}")
        same = [other for other in others if self.bracket_of(other.number) == bracket]
        found = judge(training, same, objectives, self.eta, self.spread)
        return Decision(found.stop, f"bracket {bracket}, {found.reason}")


@lru_cache(maxsize=16)
def _turns(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """One round of brackets, each as often as its size: always the one farthest behind its share, large ones first."""
    total = sum(sizes)
    given = [0] * len(sizes)
    turns = []
    for turn in range(1, total + 1):
        behind = [size * turn - total * count for size, count in zip(sizes, given, strict=True)]
        bracket = max(range(len(sizes)), key=lambda s: (behind[s], s))
        given[bracket] += 1
        turns.append(bracket)
    return tuple(turns)
