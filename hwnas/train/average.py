"""The exponential moving average of a network's weights, which often scores better than the last weights do.

Polyak & Juditsky 1992 for the idea. After step t, counted from 1, with d_t = min(decay, (1 + t) / (10 + t)):
average <- d_t average + (1 - d_t) weights. The growing d_t, as in TensorFlow's ExponentialMovingAverage, lets the
random first weights be forgotten in short trainings, too.

The running statistics of batch normalisations are averaged like weights: they describe the activations of the weights
they were gathered with, so an average over the same steps fits the averaged weights; those of the last step would fit
weights that are further along. What only counts (`num_batches_tracked`) is left to the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average over the weights and running statistics of one module, from now on; it stays where they are."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._live = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        self._averages = {name: value.clone() for name, value in self._live.items()}
        self._decay, self._steps = decay, 0

    def update(self) -> None:
        """Take in the weights as they are after a step."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        blend(list(self._averages.values()), list(self._live.values()), self._steps)

    def install(self) -> None:
        """Set the module to the average."""
        for name, value in self._live.items():
            value.copy_(self._averages[name])

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The module is set to the average meanwhile."""
        weights = {name: value.clone() for name, value in self._live.items()}
        self.install()
        try:
            yield
        finally:
            for name, value in self._live.items():
                value.copy_(weights[name])

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {"steps": self._steps, "averages": self._averages}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave for a module of the same structure."""
        self._steps = int(state["steps"])
        for name, value in self._averages.items():
            value.copy_(state["averages"][name])
