"""The gradient of the architecture parameters by REINFORCE: for rewards that need not be differentiable.

ProxylessNAS (arXiv 1812.00332, section 3.3.2): the mean over sampled architectures of reward * gradient of the log
probability, with a moving average of rewards as baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hwnas.supernet.alphas import Alphas
from hwnas.supernet.strategy import GateGradient

_KEPT = 0.99  # of the baseline, per step: the authors' value


def reinforce(
    reward_of: Callable[[Sequence[int]], float],
    alphas: Alphas,
    rng: np.random.Generator,
    samples: int,
    baseline: float | None,
) -> tuple[GateGradient, float]:
    """The gradient of -reward from so many sampled architectures, and the baseline after it (None: there is none yet).

    It is given as one in the gates: -(reward - baseline) / p of each option that was drawn.
    """
    p = alphas.probabilities()
    drawn = [alphas.sample(rng) for _ in range(samples)]
    rewards = np.array([reward_of(choices.tolist()) for choices in drawn])
    mean = float(rewards.mean())
    baseline = mean if baseline is None else _KEPT * baseline + (1 - _KEPT) * mean
    gates = np.zeros(p.shape)
    edges = np.arange(len(p))
    for choices, gained in zip(drawn, rewards - baseline, strict=True):
        gates[edges, choices] -= gained / p[edges, choices] / samples
    return GateGradient(-mean, gates, alphas.exists), baseline
