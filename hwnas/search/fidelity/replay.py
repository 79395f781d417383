"""What a rule would have done: recorded full curves, shown to it epoch by epoch.

`replay` runs a search's trainings again, in their order, by one or more workers, and stops those that the rule stops.
`calibration` asks of each finished training whether the rule, knowing all others, would have stopped it, and whether
that would have cost a point of the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.errors import RecipeError
from hwnas.search.fidelity.stopper import Stopper, Training, values_of
from hwnas.search.pareto import nondominated
from hwnas.search.problem import BoolVector, Objective, to_losses, violations


@dataclass(frozen=True)
class Replay:
    """For each training, in the order given: epochs trained, whether it was stopped, and whether that was wrong.

    Wrong: its end would have been on the front of those that finished and itself. `planned`: epochs without stopping.
    """

    epochs: tuple[int, ...]
    stopped: tuple[bool, ...]
    wrong: tuple[bool, ...]
    planned: int

    @property
    def saved(self) -> float:
        """The share of the epochs that was not trained."""
        return 1 - sum(self.epochs) / self.planned


@dataclass(frozen=True)
class Calibration:
    """Of `judged` finished trainings the rule would have stopped `stopped`, of which `wrong` are on the front."""

    judged: int
    stopped: int
    wrong: int


def replay(
    stopper: Stopper, trainings: Sequence[Training], objectives: Sequence[Objective], workers: int = 1
) -> Replay:
    """Finished trainings under a rule, begun in the order given, `workers` at a time, an epoch each in turn.

    Raises RecipeError if one is not finished or there is no worker.
    """
    _check(trainings)
    if workers < 1:
        raise RecipeError(f"a replay needs at least 1 worker, got {workers}")
    now: dict[int, Training] = {}
    waiting, running, stopped = list(trainings), list[Training](), set[int]()
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(waiting.pop(0))
        for full in list(running):
            number = full.number
            done = now[number].epochs if number in now else 0
            now[number] = part = full.until(done + 1)
            if part.finished:
                running.remove(full)
            elif stopper.decide(part, [now[other] for other in now if other != number], objectives).stop:
                running.remove(full)
                stopped.add(number)
    finished = [full for full in trainings if full.number not in stopped]
    return Replay(
        epochs=tuple(now[full.number].epochs for full in trainings),
        stopped=tuple(full.number in stopped for full in trainings),
        wrong=tuple(full.number in stopped and bool(on_front([*finished, full], objectives)[-1]) for full in trainings),
        planned=sum(full.epochs for full in trainings),
    )


def calibration(stopper: Stopper, trainings: Sequence[Training], objectives: Sequence[Objective]) -> Calibration:
    """How the rule would have judged each of the finished ones of some trainings, all others known to the end."""
    finished = [training for training in trainings if training.finished]
    stopped = np.zeros(len(finished), dtype=np.bool_)
    for row, full in enumerate(finished):
        others = [other for other in trainings if other.number != full.number]
        stopped[row] = any(
            stopper.decide(full.until(epoch), others, objectives).stop for epoch in range(1, full.epochs)
        )
    wrong = stopped & on_front(finished, objectives) if finished else stopped
    return Calibration(len(finished), int(stopped.sum()), int(wrong.sum()))


def on_front(finished: Sequence[Training], objectives: Sequence[Objective]) -> BoolVector:
    """(n,) which finished trainings keep all limits and are dominated by none that does."""
    values = values_of(finished, np.array([training.curve[-1] for training in finished]), objectives)
    losses = to_losses(values, objectives)
    losses[violations(values, objectives) > 0] = np.nan
    return nondominated(losses)


def _check(trainings: Sequence[Training]) -> None:
    if len({training.number for training in trainings}) != len(trainings):
        raise RecipeError("every training to replay needs a number of its own")
    for training in trainings:
        if not training.finished:
            raise RecipeError(
                f"training {training.number} ended after {training.epochs} epochs without being finished; only whole "
                "curves can be replayed"
            )
