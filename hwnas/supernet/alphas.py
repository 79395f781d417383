"""Architecture parameters: one number per option of each edge, whose softmax is the probability of that option.

They are a small matrix in NumPy, and their gradient follows in closed form from that of the gates (`step`), so a step
costs microseconds, whatever the network. The optimiser is Adam with betas (0, 0.999), as ProxylessNAS's authors use it
(arXiv 1812.00332). Options that were not sampled have no gradient: neither they nor their moments change, where
torch's Adam takes a missing gradient for a zero in the same tensor and lets moments decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas.space import IntMatrix

FloatMatrix = NDArray[np.float64]
BoolMatrix = NDArray[np.bool_]

_DECAY = 0.999
_EPSILON = 1e-8


class Alphas:
    """The parameters of edges with so many `options`, all options equally likely; `rate` is the learning rate.

    Matrices are (edges, most options); `exists` says which entries are options at all.
    """

    def __init__(self, options: Sequence[int], rate: float) -> None:
        self.rate = rate
        self.exists: BoolMatrix = np.arange(max(options)) < np.array(options)[:, None]
        self.values: FloatMatrix = np.where(self.exists, 0.0, -np.inf)
        self._squares: FloatMatrix = np.zeros(self.exists.shape)
        self._steps: IntMatrix = np.zeros(self.exists.shape, dtype=np.int64)

    def probabilities(self, among: BoolMatrix | None = None) -> FloatMatrix:
        """Probabilities that sum to 1 on every edge; of the options in `among` alone, if given."""
        values = self.values if among is None else np.where(among, self.values, -np.inf)
        shares = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    def sample(self, rng: np.random.Generator, among: BoolMatrix | None = None) -> IntMatrix:
        """(edges,) one option of every edge, by the probabilities."""
        return np.asarray(self._noisy(rng, among).argmax(axis=1))

    def sample_two(self, rng: np.random.Generator) -> BoolMatrix:
        """True for two different options of every edge, drawn one after the other; for the one of an edge with one."""
        among = np.zeros_like(self.exists)
        np.put_along_axis(among, np.argsort(-self._noisy(rng, None), axis=1)[:, :2], True, axis=1)
        return among & self.exists

    def step(self, gates: FloatMatrix, among: BoolMatrix) -> None:
        """Take one step against the gradient, given that of the loss in the gates.

        dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i) (eq. 4 of the paper), with the probabilities among the options
        `among` alone, all else being masked. Afterwards these are shifted so that together they are as likely as before
        (section 3.2.1), and all others exactly so.
        """
        shares = self.probabilities(among)
        gates = np.where(among, gates, 0.0)
        gradient = shares * (gates - (shares * gates).sum(axis=1, keepdims=True))
        moved = among & (among.sum(axis=1, keepdims=True) > 1)
        self._steps[moved] += 1
        self._squares[moved] += (1 - _DECAY) * (gradient[moved] ** 2 - self._squares[moved])
        mean_square = self._squares[moved] / (1 - _DECAY ** self._steps[moved])
        before = _log_sum(self.values, among)
        self.values[moved] -= self.rate * gradient[moved] / (np.sqrt(mean_square) + _EPSILON)
        self.values = np.where(moved, self.values + before - _log_sum(self.values, among), self.values)

    def state(self) -> dict[str, Tensor]:
        """All that changes, as tensors, for a checkpoint."""
        return {"values": _copy(self.values), "squares": _copy(self._squares), "steps": _copy(self._steps)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        self.values, self._squares = state["values"].numpy().copy(), state["squares"].numpy().copy()
        self._steps = state["steps"].numpy().copy()

    def _noisy(self, rng: np.random.Generator, among: BoolMatrix | None) -> FloatMatrix:
        """Logarithms plus Gumbel noise: the order of the largest is a sample without replacement."""
        values = self.values if among is None else np.where(among, self.values, -np.inf)
        return np.asarray(values + rng.gumbel(size=values.shape))


def _log_sum(values: FloatMatrix, among: BoolMatrix) -> FloatMatrix:
    """(edges, 1) logarithm of the summed exponentials of the options `among`."""
    values = np.where(among, values, -np.inf)
    most = values.max(axis=1, keepdims=True)
    return np.asarray(most + np.log(np.exp(values - most).sum(axis=1, keepdims=True)))


def _copy(matrix: NDArray[np.float64] | IntMatrix) -> Tensor:
    return torch.from_numpy(matrix.copy())
