"""The two steps of a differentiable search.

A step of the weights is one of SGD on training images; a step of the architecture is one of the parameters on
validation images, with frozen weights. Weights that a step does not compute have no gradient, and the optimiser leaves
them and their momentum alone. Both compute in bfloat16 where the device has it; weights and parameters stay in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hwnas.supernet.alphas import Alphas
from hwnas.supernet.latency_loss import (
    DIFFERENTIABLE,
    FORESIGHT,
    EdgeCosts,
    Form,
    PredictMs,
    adapted,
    checked_ms,
    reward,
)
from hwnas.supernet.reinforce import reinforce
from hwnas.supernet.relaxed import Mixer, Relaxation, RelaxedNetwork, one_path
from hwnas.supernet.strategy import Strategy
from hwnas.train.device import mixed_precision
from hwnas.train.schedule import build_optimizer


def weights_optimizer(network: nn.Module, weight_decay: float, device: torch.device) -> torch.optim.Optimizer:
    """SGD for weights of which only some have a gradient at a time."""
    optimizer = build_optimizer(network, "sgd", weight_decay, device)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            # torch's fused kernel cannot mix weights that have a momentum with others that do not yet
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def weight_step(
    network: RelaxedNetwork,
    optimizer: torch.optim.Optimizer,
    mixer: Mixer,
    images: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """One step of the weights that the mixer computes; the loss, without axes."""
    optimizer.zero_grad()
    with _precision(images.device):
        loss = cross_entropy(network(images, mixer), labels, label_smoothing=label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def _precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision(device))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No gradient of any weight is computed meanwhile."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@dataclass
class Goal:
    """A latency that steps of the architecture work towards, in a form of the loss.

    `pressure` and `baseline` (of REINFORCE; None: there is none yet) change from step to step.
    """

    relaxation: Relaxation
    predict_ms: PredictMs
    target_ms: float
    form: Form
    pressure: float
    pressure_rate: float = 0.0
    samples: int = 10
    baseline: float | None = None

    def step(
        self,
        network: RelaxedNetwork,
        strategy: Strategy,
        alphas: Alphas,
        costs: EdgeCosts,
        images: Tensor,
        labels: Tensor,
        rng: np.random.Generator,
    ) -> float:
        """One step of the architecture parameters; the loss before it (for REINFORCE: less the mean reward)."""
        expected_ms = costs.expected_ms(alphas.probabilities())
        pressure = adapted(self.pressure, expected_ms, self.target_ms, self.pressure_rate, FORESIGHT)

        def loss_of(mixer: Mixer) -> Tensor:
            with _precision(images.device):
                return cross_entropy(network(images, mixer), labels)

        with frozen(network):
            if self.form == "reinforce":
                reward_of = self._reward(network, images, labels, pressure)
                found, self.baseline = reinforce(reward_of, alphas, rng, self.samples, self.baseline)
                loss, gates = found.loss, found.gates
            else:
                found = strategy.gate_gradient(loss_of, alphas, rng)
                pull = DIFFERENTIABLE[self.form](found.loss, expected_ms, self.target_ms, pressure)
                # The gradient of the expected latency in a gate is the cost of its option.
                loss, gates = pull.loss, pull.by_cross_entropy * found.gates + pull.by_ms * costs.costs_ms
        alphas.step(gates, found.among)
        self.pressure = adapted(self.pressure, expected_ms, self.target_ms, self.pressure_rate)
        return loss

    def _reward(
        self, network: RelaxedNetwork, images: Tensor, labels: Tensor, pressure: float
    ) -> Callable[[Sequence[int]], float]:
        def reward_of(choices: Sequence[int]) -> float:
            with torch.no_grad(), _precision(images.device):
                right = network(images, one_path(choices)).argmax(1) == labels
            (ms,) = checked_ms(self.predict_ms, self.relaxation.archs(np.array([choices], dtype=np.int64)))
            return reward(float(right.float().mean()), float(ms), self.target_ms, pressure)

        return reward_of
