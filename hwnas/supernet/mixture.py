"""DARTS's mixture: every edge computes all its candidates and sums them by their probabilities.

Liu, Simonyan & Yang, ICLR 2019 (arXiv 1806.09055), eq. 2, with the first-order gradient of the architecture parameters
(section 2.3). Memory and time grow with the number of candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.supernet.alphas import Alphas
from hwnas.supernet.relaxed import Mixer, Zero
from hwnas.supernet.strategy import GateGradient


@dataclass(frozen=True)
class Mixture:
    """All paths alive in all steps."""

    def weight_mixer(self, alphas: Alphas, rng: np.random.Generator) -> Mixer:
        return weighted(torch.from_numpy(alphas.probabilities()).float())

    def gate_gradient(
        self, loss_of: Callable[[Mixer], Tensor], alphas: Alphas, rng: np.random.Generator
    ) -> GateGradient:
        gates = torch.from_numpy(alphas.probabilities()).float().requires_grad_()
        loss = loss_of(weighted(gates))
        loss.backward()  # type: ignore[no-untyped-call]
        assert gates.grad is not None
        return GateGradient(float(loss.detach()), gates.grad.double().numpy(), alphas.exists)


def weighted(gates: Tensor) -> Mixer:
    """The mixer of the sum of all candidates, each times its gate: `gates` (edges, most options)."""

    def mix(edge: int, candidates: nn.ModuleList, x: Tensor) -> Tensor:
        factors = gates[edge].to(x.device)
        terms: list[Tensor] = [
            factors[option] * candidate(x)
            for option, candidate in enumerate(candidates)
            if not isinstance(candidate, Zero)
        ]
        return reduce(add, terms)

    return mix
