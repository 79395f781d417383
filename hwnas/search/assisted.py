"""Search with a costly score and a free latency: score a few, model the score, search the model, score what it finds.

The first half of the evaluations goes to random architectures within the limits. Then, in rounds, a regression of the
score on the architecture (`surrogate.py`) and the latency predictor are searched together by NSGA-II (`inner.py`), and
the most spread of the front's unscored members are scored next.

Scores of which only the order counts, or the orders of several, are ranked among all that has been scored so far, anew
in each round.

Every step follows from the seed and from scores already known. So a run that was cut off is simply run again: with the
recorded scores at hand it takes the same path, and only what is missing is computed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwnas.search.inner import nsga2, select_spread
from hwnas.search.known import Known
from hwnas.search.problem import FloatMatrix, FloatVector
from hwnas.search.surrogate import ScoreModel
from hwnas.space import IntMatrix

Evaluate = Callable[[IntMatrix], FloatMatrix]
Rank = Callable[[FloatMatrix], FloatVector]

ROUNDS = 4


def first_score(scores: FloatMatrix) -> FloatVector:
    """(n, k) -> (n,): the first score as it is."""
    found: FloatVector = scores[:, 0]
    return found


def assisted_search(
    known: Known, evaluate: Evaluate, *, evaluations: int, seed: int, rank: Rank = first_score
) -> IntMatrix:
    """(n, slots): the distinct architectures scored, at most `evaluations`, in the order of scoring.

    `evaluate` maps (n, slots) to (n, k) scores, NaN where undefined; `rank` maps the scores of all architectures so far
    to the (n,) values that are searched: the first of `known`'s two objectives. The second is known exactly. Raises
    InfeasibleError if no architecture keeps the limits.
    """
    rng = np.random.default_rng(seed)
    archs = known.sample(max(evaluations // 2, 5), rng)[:evaluations]
    scores = evaluate(archs)
    for done in range(ROUNDS):
        wanted = (evaluations - len(archs)) // (ROUNDS - done)
        if wanted < 1:
            continue
        found = _proposals(known, archs, rank(scores), seed + done + 1)
        if len(found) == 0:
            break
        more = found[select_spread(known.exact_losses(found), wanted)]
        archs, scores = np.concatenate([archs, more]), np.concatenate([scores, evaluate(more)])
    return archs


def _proposals(known: Known, archs: IntMatrix, scores: FloatVector, seed: int) -> IntMatrix:
    """(k, slots): the predicted front within the limits, less what has been scored."""
    model = ScoreModel.fit(known.space, archs, scores)
    (latency,) = known.exact.values()

    def predict(candidates: IntMatrix) -> FloatMatrix:
        values = np.stack([model.predict(candidates), latency(candidates)], axis=1)
        values[~known.feasible(candidates)] = np.nan
        return values

    front = nsga2(known.space, predict, known.objectives, seed=seed, initial=archs)
    scored = {tuple(row) for row in archs}
    fresh = [row for row in front.archs if tuple(row) not in scored]
    return np.array(fresh, dtype=np.int64).reshape(len(fresh), len(known.space.slots))
