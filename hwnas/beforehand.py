"""What a run knows of architectures before any is trained: latency, other limits, and ranks of zero-shot scores."""

from __future__ import annotations

import numpy as np

from hwnas.limits import known_limits, total, unlimited
from hwnas.ranks import average_ranks
from hwnas.run import Run, score_study, train_objectives
from hwnas.scored import score_matrix, without_vote
from hwnas.search.known import Known
from hwnas.search.problem import FloatMatrix
from hwnas.search.study import recorded
from hwnas.search.surrogate import ScoreModel
from hwnas.space import IntMatrix
from hwnas.zeroshot import score_names


def known_of(run: Run, *, scored: bool) -> Known:
    """What the run's sampler may know; `scored`: with the ranks of the scored architectures as its prior."""
    objectives = unlimited(train_objectives(run))
    exact, limits = {"latency": run.predictor.predict_ms}, known_limits(run)
    if not scored or not recorded(score_study(run)):
        return Known(run.space, objectives, exact, limits)
    prior = _Prior(run)
    return Known(run.space, objectives, exact, limits, prior, prior.archs)


class _Prior:
    """Ranks of every score that has a vote: of the scored architectures their own, of others a regression's."""

    def __init__(self, run: Run) -> None:
        names = score_names(run.recipe.search.score)
        trials = recorded(score_study(run))
        silent = without_vote(run)
        matrix = score_matrix(run, trials, list(trials))[:, [name not in silent for name in names]]
        self.archs: IntMatrix = np.array(list(trials), dtype=np.int64)
        worst = np.where(np.isnan(matrix), -np.inf, matrix)
        self._ranks: FloatMatrix = np.apply_along_axis(average_ranks, 0, worst) / len(worst)
        self._own = {arch.tobytes(): ranks for arch, ranks in zip(self.archs, self._ranks, strict=True)}
        sizes = [total(run.index, name) for name in ("macs", "params")]

        def extra(archs: IntMatrix) -> FloatMatrix:
            return np.log1p(np.stack([size(archs) for size in sizes], axis=1))

        self._models = [ScoreModel.fit(run.space, self.archs, column, extra) for column in self._ranks.T]

    def __call__(self, archs: IntMatrix) -> FloatMatrix:
        """(n, slots) canonical -> (n, scores) ranks in [0, 1]."""
        ranks = np.stack([model.predict(archs) for model in self._models], axis=1)
        for row, arch in enumerate(archs):
            if (own := self._own.get(arch.tobytes())) is not None:
                ranks[row] = own
        return np.clip(ranks, 0.0, 1.0)
