"""The trained largest network, which smaller ones learn from in the later stages of progressive shrinking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.supernet.elastic import Supernet
from hwnas.supernet.extremes import largest_arch
from hwnas.supernet.images import SupernetImages
from hwnas.supernet.recalibrate import recalibrate


class Teacher:
    """(batch, channels, size, size) images of any resolution -> (batch, classes) logits.

    `state` is that of a teacher of the same training, or None before there is one.
    """

    def __init__(self, supernet: Supernet, images: SupernetImages, state: Mapping[str, Any] | None) -> None:
        self._images, self._arch = images, largest_arch(supernet.space)
        self._network: nn.Module | None = None
        self.state: dict[str, Any] | None = None
        if state is not None:
            self._network = supernet.extract(self._arch)
            self._network.load_state_dict(state)
            self._ready()

    def learn(self, supernet: Supernet) -> None:
        """Take over what the largest network has learnt."""
        self._network = supernet.extract(self._arch)
        recalibrate(self._network, self._images.calibration(self._arch))
        self._ready()

    def _ready(self) -> None:
        assert self._network is not None  # set by both callers
        self._network.eval().requires_grad_(False)
        self.state = self._network.state_dict()

    def __call__(self, inputs: Tensor) -> Tensor:
        assert self._network is not None  # the first stage is over
        with torch.no_grad():
            logits: Tensor = self._network(inputs)
        return logits
