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

from collections.abc import Callable, Sequence

import numpy as np

from hwnas.errors import PredictorError
from hwnas.search.inner import nsga2, select_spread
from hwnas.search.pareto import nondominated_ranks
from hwnas.search.problem import FloatMatrix, FloatVector, Objective, to_losses, violations
from hwnas.search.surrogate import ScoreModel
from hwnas.space import IntMatrix, SearchSpace, unique_archs

Evaluate = Callable[[IntMatrix], FloatMatrix]
Rank = Callable[[FloatMatrix], FloatVector]
Latency = Callable[[IntMatrix], FloatVector]

ROUNDS = 4
# Shares of slots taken from the fastest network when random networks do not keep the limits.
_MIXES = (0.0, 0.25, 0.5, 0.75, 0.9)


def first_score(scores: FloatMatrix) -> FloatVector:
    """(n, k) -> (n,): the first score as it is."""
    found: FloatVector = scores[:, 0]
    return found


def assisted_search(
    space: SearchSpace,
    evaluate: Evaluate,
    latency: Latency,
    objectives: tuple[Objective, Objective],
    *,
    evaluations: int,
    seed: int,
    rank: Rank = first_score,
) -> IntMatrix:
    """(n, slots): the distinct architectures scored, at most `evaluations`, in the order of scoring.

    `evaluate` maps (n, slots) to (n, k) scores, NaN where undefined; `rank` maps the scores of all architectures so far
    to the (n,) values that are searched. `latency` maps (n, slots) to ms. To these and the values `objectives` (score,
    latency) and their limits refer. Raises InfeasibleError if no architecture keeps the limits.
    """
    rng = np.random.default_rng(seed)
    archs = feasible_sample(space, latency, objectives[1], max(evaluations // 2, 5), rng)[:evaluations]
    scores = evaluate(archs)
    for done in range(ROUNDS):
        wanted = (evaluations - len(archs)) // (ROUNDS - done)
        if wanted < 1:
            continue
        found = _proposals(space, archs, rank(scores), latency, objectives, seed + done + 1)
        if len(found) == 0:
            break
        more = found[select_spread(latency(found)[:, None], wanted)]
        archs, scores = np.concatenate([archs, more]), np.concatenate([scores, evaluate(more)])
    return archs


def _proposals(
    space: SearchSpace,
    archs: IntMatrix,
    scores: FloatVector,
    latency: Latency,
    objectives: tuple[Objective, Objective],
    seed: int,
) -> IntMatrix:
    """(k, slots): the predicted front, less what has been scored."""
    model = ScoreModel.fit(space, archs, scores)

    def predict(candidates: IntMatrix) -> FloatMatrix:
        return np.stack([model.predict(candidates), latency(candidates)], axis=1)

    front = nsga2(space, predict, objectives, seed=seed, initial=archs)
    known = {tuple(row) for row in archs}
    fresh = [row for row in front.archs if tuple(row) not in known]
    return np.array(fresh, dtype=np.int64).reshape(len(fresh), len(space.slots))


def feasible_sample(
    space: SearchSpace, latency: Latency, objective: Objective, n: int, rng: np.random.Generator
) -> IntMatrix:
    """(up to n, slots): distinct random architectures within the limit; where few are, mixed with the fastest one.

    Raises InfeasibleError, saying what is attainable, if the fastest architecture is above the limit.
    """

    def within(archs: IntMatrix) -> IntMatrix:
        kept: IntMatrix = archs[violations(latency(archs)[:, None], [objective]) == 0]
        return kept

    found = unique_archs(within(space.sample(4 * n, rng)))
    if len(found) >= n:
        return found[:n]
    seed = int(rng.integers(1 << 31))
    fastest = nsga2(space, lambda archs: latency(archs)[:, None], [objective], seed=seed, generations=20).archs[:1]
    found = np.concatenate([found, fastest])
    for share in _MIXES:
        archs = space.sample(20 * n, rng)
        mixed = np.where(rng.random(archs.shape) < share, fastest, archs)
        found = unique_archs(np.concatenate([found, within(space.canonical(mixed))]))
        if len(found) >= n:
            break
    return found[rng.permutation(len(found))[:n]]


def choose_finalists(values: FloatMatrix, objectives: Sequence[Objective], k: int) -> list[int]:
    """Rows of (n, objectives) values to go on with: spread over the front, then over the next front, up to k.

    Rows with a NaN or outside of a limit are never chosen. Raises PredictorError if none is left.
    """
    rows = np.flatnonzero(np.isfinite(values).all(axis=1))
    rows = rows[violations(values[rows], objectives) == 0]
    if len(rows) == 0:
        raise PredictorError(f"none of the {len(values)} evaluated architectures has a score within the limits")
    ranks = nondominated_ranks(to_losses(values[rows], objectives))
    chosen: list[int] = []
    for rank in range(int(ranks.max()) + 1):
        members = rows[ranks == rank]
        if len(chosen) < k:
            chosen += [int(row) for row in members[select_spread(values[members], k - len(chosen))]]
    return chosen
