"""A model of one expensive objective: a Gaussian process on the logarithm of the distance to just beyond the best.

Accuracies crowd at the top and trail off far below, so that what sets apart the best, which a search is about, would be
lost beside a few bad networks. The loss l becomes log(l - best + d), where d is chosen by the marginal likelihood (with
the Jacobian of the change, as Snelson, Rasmussen & Ghahramani 2003 warp Gaussian processes); a large d leaves the loss
as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.search.gp import GaussianProcess, Kernel
from hwnas.search.problem import FloatMatrix, FloatVector

# d, as a share of the range of the losses seen
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 2.0, 10.0)
_USUAL = 0.2
_CHOOSE_FROM = 8  # evaluations from which on d is chosen
_SHORT = 8  # iterations of the fits that are compared


@dataclass(frozen=True)
class WarpedModel:
    """log(loss - best + shift) = a Gaussian process of the features; `fit` makes one."""

    process: GaussianProcess
    best: float
    shift: float

    @classmethod
    def fit(cls, kernels: Sequence[Kernel], features: FloatMatrix, losses: FloatVector) -> WarpedModel:
        """Fit (n, k) features to (n,) finite losses, n >= 2."""
        best = float(losses.min())
        extent = float(np.ptp(losses)) or max(abs(best), 1.0)

        def fitted(share: float, start: FloatVector | None, iterations: int) -> tuple[float, GaussianProcess]:
            shifted = losses - best + share * extent
            process = GaussianProcess.fit(kernels, features, np.log(shifted), start=start, iterations=iterations)
            return process.log_evidence - float(np.log(shifted).sum()), process

        share = _USUAL
        _, process = fitted(share, None, 30)
        if len(losses) >= _CHOOSE_FROM:
            start = process.parameters
            share = max(_SHARES, key=lambda each: fitted(each, start, _SHORT)[0])
            process = fitted(share, start, 30)[1]
        return cls(process, best, share * extent)

    def with_fantasies(self, features: FloatMatrix) -> WarpedModel:
        """The model after evaluations that all gave what it predicts: less uncertain, and no wiser."""
        if not len(features):
            return self
        means, _ = self.process.predict(features)
        return WarpedModel(self.process.extended(features, means), self.best, self.shift)

    def predict(self, features: FloatMatrix) -> tuple[FloatVector, FloatVector]:
        """(n, k) features -> (n,) means and deviations of the process; `losses` takes them back."""
        return self.process.predict(features)

    def losses(self, values: FloatMatrix) -> FloatMatrix:
        """Values of the process, in any shape, as losses: a median from a mean, a quantile from a quantile."""
        return np.asarray(np.exp(np.minimum(values, 700.0)) + self.best - self.shift)
