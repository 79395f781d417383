"""ProxylessNAS's binarised paths (Cai, Zhu & Han, ICLR 2019, arXiv 1812.00332, section 3.2).

A step of the weights computes one sampled candidate of every edge. A step of the architecture samples two; the gate
of one is 1, that of the other 0, and the gradient of the loss in a gate is the inner product of the candidate's output
with the gradient that reaches the edge's output (dL/dg_j = sum(dL/dy * o_j)).

The gradient of the architecture parameters depends on the difference of the two gates' gradients alone. So the other
candidate needs no graph, no gradient of any weight is computed, and an edge keeps one tensor, the difference of both
outputs, until the gradient arrives. Nothing before the first edge has a graph either. The authors' code computes the
gradients of the active candidate's weights as well, and leaves a skipped edge's gate with the gradient of an earlier
step; here every step starts from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.supernet.alphas import Alphas
from hwnas.supernet.relaxed import Mixer, one_path
from hwnas.supernet.strategy import GateGradient


@dataclass(frozen=True)
class BinaryPaths:
    """One path alive in steps of the weights, two in steps of the architecture."""

    def weight_mixer(self, alphas: Alphas, rng: np.random.Generator) -> Mixer:
        return one_path(alphas.sample(rng).tolist())

    def gate_gradient(
        self, loss_of: Callable[[Mixer], Tensor], alphas: Alphas, rng: np.random.Generator
    ) -> GateGradient:
        among = alphas.sample_two(rng)
        active = alphas.sample(rng, among)
        rest = among.copy()
        np.put_along_axis(rest, active[:, None], False, axis=1)
        # -1: an edge of one option
        others = np.where(rest.any(axis=1), rest.argmax(axis=1), -1)
        paths = TwoPaths(active.tolist(), others.tolist())
        loss = loss_of(paths)
        loss.backward()  # type: ignore[no-untyped-call]
        gates = np.zeros(among.shape)
        edges = np.array(paths.edges, dtype=np.int64)
        np.add.at(gates, (edges, active[edges]), paths.products())
        return GateGradient(float(loss.detach()), gates, among)


class TwoPaths:
    """A mixer for frozen weights: computes the `active` candidates, and what the `others` would have changed.

    After a backward pass, `products()` are the sums of dL/dy * (active output - other output), one per place that the
    gradient reached, and `edges` their edges. An edge without another (-1) is computed and has no product.
    """

    def __init__(self, active: Sequence[int], others: Sequence[int]) -> None:
        self._active, self._others = active, others
        self.edges: list[int] = []
        self._products: list[Tensor] = []

    def products(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        if not self._products:
            return np.zeros(0)
        return np.asarray(torch.stack(self._products).double().cpu().numpy())

    def __call__(self, edge: int, candidates: nn.ModuleList, x: Tensor) -> Tensor:
        other = self._others[edge]
        if other < 0:
            return candidates[self._active[edge]](x)  # type: ignore[no-any-return]
        y: Tensor = candidates[self._active[edge]](x)
        # Its own node of the graph, or the first: an identity's output is also what other edges read.
        y = y.view_as(y) if y.requires_grad else y.detach().requires_grad_()
        with torch.no_grad():
            difference = y - candidates[other](x)
        y.register_hook(lambda gradient: self._record(edge, difference, gradient))  # type: ignore[no-untyped-call]
        return y

    def _record(self, edge: int, difference: Tensor, gradient: Tensor) -> None:
        self.edges.append(edge)
        self._products.append((gradient * difference).sum(dtype=torch.float32))  # what is multiplied may be bfloat16
