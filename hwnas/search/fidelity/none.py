"""`none`: every training runs to its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwnas.search.fidelity.stopper import Decision, Training, check_settings, whole
from hwnas.search.problem import Objective


@dataclass(frozen=True, kw_only=True)
class NoStopping:
    """Stops nothing."""

    max_epochs: int

    def __post_init__(self) -> None:
        check_settings("none", [("max_epochs", self.max_epochs, whole(self.max_epochs, 1), "at least 1")])

    def decide(self, training: Training, others: Sequence[Training], objectives: Sequence[Objective]) -> Decision:
        """Never stop."""
        return Decision(False, f"every training runs its {self.max_epochs} epochs")
