"""The relaxed supernet: at every place of an edge all its candidates stand, and a mixer says what is computed of them.

An *edge* is one decision: which of its candidates the derived network has. It stands at one place of the network (a
layer of a chain) or at several (an edge of a cell, in all cells). What differs between searches is only the mixer, a
function of an edge's number, its candidates and their input: one sampled candidate (`one_path`), two (`binary.py`), a
weighted sum of all (`mixture.py`). What differs between spaces is a `Relaxation` (`relaxations/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.space import Arch, IntMatrix, SearchSpace, rows_of
from hwnas.supernet.centre import compute_centres

Mixer = Callable[[int, nn.ModuleList, Tensor], Tensor]


@dataclass(frozen=True)
class Edge:
    """One decision: its name, and what can be chosen, in words."""

    name: str
    options: tuple[str, ...]


class Relaxation(Protocol):
    """How the architectures of a space follow from one choice per edge, and the network that holds all candidates.

    Choices are integers: (edges,) for one architecture, (n, edges) for many.
    """

    space: SearchSpace
    edges: tuple[Edge, ...]

    def archs(self, choices: IntMatrix) -> IntMatrix:
        """(n, edges) int -> (n, slots) int, canonical architectures."""

    def usable(self, archs: IntMatrix) -> NDArray[np.bool_]:
        """(n, slots) -> (n,): whether the network's output depends on its input."""

    def body(self) -> nn.Module:
        """A freshly initialised network whose edges are `Choice` modules, numbered as `edges`."""

    def sources(self, choices: Sequence[int]) -> Mapping[str, str]:
        """By the name of each position that stands in the derived network: the path of its module in `body`."""


class Zero(nn.Module):
    """The candidate that computes nothing: zeros in the shape of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Choice(nn.Module):
    """A place of an edge: its candidates. `nn.Identity` hands the input on, `Zero` gives nothing."""

    def __init__(self, edge: int, candidates: Sequence[nn.Module]) -> None:
        super().__init__()
        self.edge = edge
        self.candidates = nn.ModuleList(candidates)
        self.mixer: Mixer | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.mixer is not None, "a Choice computes inside of a RelaxedNetwork only"
        return self.mixer(self.edge, self.candidates, x)


class RelaxedNetwork(nn.Module):
    """All candidates of a relaxation with their weights, initialised by `seed`.

    (batch, channels, size, size) images and a mixer -> (batch, classes) logits.
    """

    def __init__(self, relaxation: Relaxation, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = relaxation.body()
        compute_centres(self.body)
        self._choices = [module for module in self.body.modules() if isinstance(module, Choice)]

    def forward(self, x: Tensor, mixer: Mixer) -> Tensor:
        self._set(mixer)
        try:
            logits: Tensor = self.body(x)
        finally:
            self._set(None)  # a mixer may hold tensors
        return logits

    def _set(self, mixer: Mixer | None) -> None:
        for choice in self._choices:
            choice.mixer = mixer


def one_path(choices: Sequence[int]) -> Mixer:
    """The mixer that computes one candidate of every edge, and nothing of the others."""

    def mix(edge: int, candidates: nn.ModuleList, x: Tensor) -> Tensor:
        y: Tensor = candidates[choices[edge]](x)
        return y

    return mix


def arch_of(relaxation: Relaxation, choices: Sequence[int]) -> Arch:
    """The architecture of one choice per edge."""
    (arch,) = rows_of(relaxation.archs(np.array([choices], dtype=np.int64)))
    return arch


def inherited_network(relaxation: Relaxation, network: RelaxedNetwork, choices: Sequence[int]) -> nn.Module:
    """The derived network, as `space.build` makes it, with copies of the weights and statistics of its candidates.

    The statistics of its batch normalisations were gathered over many networks: measure them anew (`recalibrate.py`).
    """
    with torch.random.fork_rng(devices=[]):
        derived = relaxation.space.build(arch_of(relaxation, choices))
    for place, source in relaxation.sources(choices).items():
        derived.get_submodule(place).load_state_dict(network.body.get_submodule(source).state_dict())
    return derived
