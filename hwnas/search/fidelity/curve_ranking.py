"""`curve_ranking`: stop a training that will hardly end better than those with which it competes.

After Wistuba & Pedapati 2020 (arXiv 2006.03361, section 3): learning curves are ranked, not extrapolated, and a
training stops when the probability that it ends better than the best one is below a threshold. The model, and how it
differs from theirs: `pairwise.py`. With several objectives a training competes with the best finished one that is
nowhere worse in what was known before training (for latency: that is at most as slow): who does not end better than
that one is not on the front. A training with no such rival is never stopped.

Features of a curve after some epoch, as normal scores among all trainings that have a value there: the best value so
far, since at high learning rates single values dip by chance, and how far its score is above that of the best value
until half of these epochs, which tells who catches up. The objectives known before training are features too: slow
networks often learn late. So are `Training.features`, if given.

What is stopped is never known to the end, so the finished curves are those of networks that were worth finishing.
`spare` trains every so-manyth network to its end whatever the model says: `replay.calibration` of those tells how often
it would have been wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.errors import RecipeError
from hwnas.search.fidelity.pairwise import PairwiseModel, normal_scores
from hwnas.search.fidelity.stopper import (
    Decision,
    Training,
    check_settings,
    known_violations,
    learned_column,
    number_in,
    rivals,
    values_of,
    whole,
)
from hwnas.search.problem import FloatMatrix, Objective, to_losses, violations

_MOST_CURVES = 60  # the latest so many are learned from: more pairs cost time and tell little
# variances of the weights before anything is seen: of the value, of its gain, of an objective known before training,
# and of each of `Training.features`, of which there are many and of which most say little
_VALUE, _GAIN, _KNOWN, _FEATURE = 3.0, 1.0, 1.0, 0.02


@dataclass(frozen=True, kw_only=True)
class CurveRanking:
    """Stops at a `chance` of less than that to enter the front; asked from `min_epochs` on, every `interval` epochs.

    The first `min_curves` trainings to finish are not judged; nor is every `spare`-th, if above 0. Raises RecipeError
    on settings that cannot be used.
    """

    max_epochs: int
    chance: float = 0.1
    min_epochs: int = 2
    interval: int = 1
    min_curves: int = 5
    spare: int = 0

    def __post_init__(self) -> None:
        check_settings(
            "curve_ranking",
            [
                ("max_epochs", self.max_epochs, whole(self.max_epochs, 2), "at least 2, or the rule 'none'"),
                ("chance", self.chance, number_in(self.chance, 0, 1), "between 0 and 1"),
                ("min_epochs", self.min_epochs, whole(self.min_epochs, 1), "a whole number of at least 1"),
                ("interval", self.interval, whole(self.interval, 1), "a whole number of at least 1"),
                ("min_curves", self.min_curves, whole(self.min_curves, 3), "a whole number of at least 3"),
                ("spare", self.spare, whole(self.spare, 0), "a whole number, 0 to spare none"),
            ],
        )
        before = f"below the {self.max_epochs} epochs of a training"
        check_settings("curve_ranking", [("min_epochs", self.min_epochs, self.min_epochs < self.max_epochs, before)])

    def decide(self, training: Training, others: Sequence[Training], objectives: Sequence[Objective]) -> Decision:
        """Stop a training whose chance to end on the front of the finished ones is too small."""
        learned_column(training, objectives)  # wrong objectives are said at once, not when enough is finished
        epoch = training.epochs
        if not self.min_epochs <= epoch < self.max_epochs or (epoch - self.min_epochs) % self.interval:
            return Decision(False, f"epoch {epoch}: not asked")
        if self.spare and training.number % self.spare == 0:
            return Decision(False, f"training {training.number} is spared: every {self.spare}. is")
        if not math.isfinite(training.value_at(epoch)):
            return Decision(False, f"epoch {epoch}: its value is {training.value_at(epoch)}, which cannot be judged")
        field = rivals(training, others, objectives)
        finished = [other for other in field if other.finished]
        if len(finished) < self.min_curves:
            return Decision(False, f"{len(finished)} finished trainings of the {self.min_curves} needed to judge")
        best = _to_beat(training, finished, objectives)
        if isinstance(best, Decision):
            return best
        shown = [other for other in field if math.isfinite(other.value_at(epoch))]
        if sum(other.finished for other in shown) < self.min_curves:
            return Decision(False, f"epoch {epoch}: fewer than {self.min_curves} finished trainings have a value there")
        chance = _chance(training, shown, best, objectives)
        words = f"epoch {epoch}: a chance of {chance:.3f} to end better than training {best.number}"
        return Decision(chance < self.chance, f"{words}; stopped below {self.chance}")


def _to_beat(training: Training, finished: Sequence[Training], objectives: Sequence[Objective]) -> Training | Decision:
    """The best finished training that is nowhere worse in what is known; or the decision, where no chance is needed."""
    epoch, column = training.epochs, learned_column(training, objectives)
    ended = values_of(finished, np.array([other.curve[-1] for other in finished]), objectives)
    own = values_of([training], np.array([training.value_at(epoch)]), objectives)
    feasible = np.flatnonzero(violations(ended, objectives) == 0).tolist()
    if known_violations(own, column, objectives)[0] > 0:
        if not feasible:
            return Decision(False, f"epoch {epoch}: it breaks a limit, and nothing finished keeps all of them")
        return Decision(True, f"epoch {epoch}: it breaks a limit; training {finished[feasible[0]].number} keeps all")
    losses = to_losses(ended, objectives)
    known = np.flatnonzero(np.delete(losses <= to_losses(own, objectives), column, axis=1).all(axis=1)).tolist()
    rows = sorted({*feasible} & {*known})
    if not rows:
        return Decision(False, f"epoch {epoch}: nothing finished is as good in what is known before training")
    return finished[min(rows, key=lambda row: float(losses[row, column]))]


def _chance(training: Training, shown: Sequence[Training], best: Training, objectives: Sequence[Objective]) -> float:
    """The probability that the training ends better than `best`, learned from those that have a value at its epoch."""
    pool = [*shown, training]
    epoch, column = training.epochs, learned_column(training, objectives)
    sense = -objectives[column].sign  # more is better
    value, half = (normal_scores(column, column) for column in curve_values(pool, epoch, sense).T)
    known = _known(pool, objectives)
    for one in pool:
        if len(one.features) != len(training.features):
            raise RecipeError(
                f"training {one.number} has {len(one.features)} features and training {training.number} has "
                f"{len(training.features)}; give all trainings the same, or none"
            )
    described = np.array([one.features for one in pool], dtype=np.float64).reshape(len(pool), -1)
    features = np.column_stack([value, value - half, *(normal_scores(one, one) for one in known.T), described])
    prior = np.array([_VALUE, _GAIN] + [_KNOWN] * known.shape[1] + [_FEATURE] * described.shape[1])
    learned_from = [row for row, one in enumerate(pool) if one.finished][-_MOST_CURVES:]
    ended = sense * np.array([pool[row].curve[-1] for row in learned_from])
    model = PairwiseModel.fit(features[learned_from], normal_scores(ended, ended), prior)
    to_beat = normal_scores(np.array([sense * best.curve[-1]]), ended)
    return model.chance(features[-1], float(to_beat[0]))


def curve_values(trainings: Sequence[Training], epoch: int, sense: float) -> FloatMatrix:
    """(n, 2) the best value until that epoch, and until half of the epochs, more is better.

    `sense` is 1 where the user wants more, -1 otherwise. What was not measured until half is the first value.
    """
    rows = []
    for training in trainings:
        seen = [sense * value for value in training.curve[:epoch]]
        early = [value for value in seen[: (epoch + 1) // 2] if math.isfinite(value)]
        there = [value for value in seen if math.isfinite(value)]
        rows.append((max(there), max(early or there[:1])))
    return np.array(rows, dtype=np.float64)


def _known(trainings: Sequence[Training], objectives: Sequence[Objective]) -> FloatMatrix:
    """(n, objectives - 1) what is known before training."""
    column = learned_column(trainings[0], objectives)
    values = values_of(trainings, np.zeros(len(trainings)), objectives)
    return np.delete(values, column, axis=1)
