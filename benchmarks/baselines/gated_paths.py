"""Binarised paths as ProxylessNAS's authors compute them (arXiv 1812.00332, and the description in its section 3.2).

All architecture parameters and gates are torch parameters, one tensor per edge. In a step of the architecture both
sampled candidates are in the graph, multiplied by their gates, the inactive one's output detached; the backward pass
computes the gradients of the active candidates' weights, too. Gradients of the parameters, and the rescaling
afterwards, go edge by edge in Python. The expected latency is part of the loss, through autograd. Candidates that were
not sampled are taken out of the network when gradients are cleared, so their weights keep the gradient of an earlier
step, and the optimiser moves them by it again. Gates are cleared everywhere, so that both ways search the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax

from hwnas.supernet.alphas import FloatMatrix
from hwnas.supernet.relaxed import Choice, RelaxedNetwork, one_path


class GatedPaths:
    """A relaxed network with parameters and gates of its own, and its two optimisers."""

    def __init__(self, network: RelaxedNetwork, options: list[int], costs_ms: FloatMatrix, target_ms: float) -> None:
        self.network = network
        self.alphas = [nn.Parameter(1e-3 * torch.randn(count)) for count in options]
        self.gates = [nn.Parameter(torch.zeros(count)) for count in options]
        self._costs = [torch.from_numpy(row[:count]).float() for row, count in zip(costs_ms, options, strict=True)]
        self._target_ms = target_ms
        self._places = [(weight, -1, -1) for weight in network.parameters()]
        for choice in network.modules():
            if isinstance(choice, Choice):
                own = {weight: option for option, part in enumerate(choice.candidates) for weight in part.parameters()}
                self._places = [(w, choice.edge, own[w]) if w in own else (w, e, o) for w, e, o in self._places]
        self._weights = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=4e-5)
        self._adam = torch.optim.Adam(self.alphas, lr=1e-3, betas=(0.0, 0.999))

    def weight_step(self, x: Tensor, y: Tensor) -> None:
        """One sampled path, a step of its weights."""
        chosen = [int(torch.multinomial(softmax(alpha, 0).detach(), 1)) for alpha in self.alphas]
        loss = cross_entropy(self.network(x, one_path(chosen)), y)
        self._clear([(option,) for option in chosen])
        loss.backward()
        self._weights.step()

    def architecture_step(self, x: Tensor, y: Tensor) -> None:
        """Two sampled paths, a step of the parameters."""
        pairs = self.sample_two()

        def mix(edge: int, candidates: nn.ModuleList, x: Tensor) -> Tensor:
            active, other = pairs[edge]
            gates = self.gates[edge]
            y: Tensor = gates[active] * candidates[active](x) + gates[other] * candidates[other](x).detach()
            return y

        expected = sum(
            ((softmax(alpha, 0) * cost).sum() for alpha, cost in zip(self.alphas, self._costs, strict=True)),
            torch.zeros(()),
        )
        loss = cross_entropy(self.network(x, mix), y) + 0.1 * (expected - self._target_ms) / self._target_ms
        self._clear(pairs)
        self._adam.zero_grad()
        loss.backward()
        self.update(pairs)

    def _clear(self, sampled: Sequence[tuple[int, ...]]) -> None:
        """No gradient for the weights of sampled candidates, and of all that is no candidate."""
        for weight, edge, option in self._places:
            if edge < 0 or option in sampled[edge]:
                weight.grad = None

    def sample_two(self) -> list[tuple[int, int]]:
        """By edge: the active option and the other; their gates are set to 1 and 0."""
        pairs = []
        for alpha, gate in zip(self.alphas, self.gates, strict=True):
            pair = torch.multinomial(softmax(alpha, 0).detach(), 2).tolist()
            shares = softmax(torch.stack([alpha.detach()[option] for option in pair]), 0)
            first = int(torch.multinomial(shares, 1))
            pairs.append((pair[first], pair[1 - first]))
            gate.grad = torch.zeros_like(gate)
            gate.data.zero_()
            gate.data[pair[first]] = 1.0
        return pairs

    def update(self, pairs: list[tuple[int, int]]) -> None:
        """From gradients of gates to parameters: the closed form, Adam, and the rescaling of the pair."""
        before = []
        for pair, alpha, gate in zip(pairs, self.alphas, self.gates, strict=True):
            assert gate.grad is not None
            alpha.grad = torch.zeros_like(alpha) if alpha.grad is None else alpha.grad
            shares = softmax(torch.stack([alpha.detach()[option] for option in pair]), 0)
            for i, of in enumerate(pair):
                for j, by in enumerate(pair):
                    alpha.grad[of] += gate.grad[by] * shares[j] * (float(i == j) - shares[i])
            before.append([float(alpha.detach()[option]) for option in pair])
        self._adam.step()
        for pair, alpha, old in zip(pairs, self.alphas, before, strict=True):
            new = [float(alpha.detach()[option]) for option in pair]
            offset = math.log(sum(np.exp(new)) / sum(np.exp(old)))
            for option in pair:
                alpha.data[option] -= offset
