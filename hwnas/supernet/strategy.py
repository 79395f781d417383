"""What differs between differentiable searches: which candidates are computed, and what gradient the gates get.

A gate is the factor of a candidate's output. A strategy is a small frozen dataclass in a file of its own, and a line in
`STRATEGIES`; the network (`relaxed.py`), the parameters (`alphas.py`), the latency (`latency_loss.py`), the derivation
(`derive.py`) and the loop (`proxyless.py`) are the same for all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from torch import Tensor

from hwnas.errors import RecipeError
from hwnas.supernet.alphas import Alphas, BoolMatrix, FloatMatrix
from hwnas.supernet.relaxed import Mixer

STRATEGIES = {
    "binary": "hwnas.supernet.binary:BinaryPaths",
    "mixture": "hwnas.supernet.mixture:Mixture",
}


@dataclass(frozen=True)
class GateGradient:
    """The loss of a batch, and its gradient in the gates of the options `among`, both (edges, most options).

    Adding one number to all gates `among` of an edge changes nothing (see `Alphas.step`), so it is free.
    """

    loss: float
    gates: FloatMatrix
    among: BoolMatrix


class Strategy(Protocol):
    """A way to train weights and architecture parameters in turns."""

    def weight_mixer(self, alphas: Alphas, rng: np.random.Generator) -> Mixer:
        """What a step of the weights computes."""

    def gate_gradient(
        self, loss_of: Callable[[Mixer], Tensor], alphas: Alphas, rng: np.random.Generator
    ) -> GateGradient:
        """For a step of the architecture: `loss_of` gives the loss of its batch under a mixer; weights are frozen."""


def make_strategy(name: str) -> Strategy:
    """The strategy of that name. Raises RecipeError on an unknown one."""
    if name not in STRATEGIES:
        raise RecipeError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}")
    module, attribute = STRATEGIES[name].split(":")
    return cast(Strategy, getattr(importlib.import_module(module), attribute)())
