"""The activations of a network, whether they are modules or functions.

A unit is active for an image where the *input* of its activation is positive: for ReLU (and ReLU6, leaky ReLU, SiLU,
GELU, hard-swish...) that is where the output is. Sigmoid and hard-sigmoid are not counted: in mobile networks they are
gates beside the main path (squeeze-and-excitation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What nn.ReLU, nn.GELU and the others call, and what users call instead of them; their first argument is the input
ACTIVATIONS = frozenset(
    {
        F.relu, F.relu_, F.relu6, F.hardtanh, F.hardtanh_, F.leaky_relu, F.leaky_relu_, F.prelu, F.rrelu, F.rrelu_,
        F.elu, F.elu_, F.selu, F.selu_, F.celu, F.celu_, F.gelu, F.silu, F.mish, F.hardswish, F.softplus, F.tanh,
        torch.relu, torch.relu_, torch.prelu, torch.selu, torch.celu, torch.tanh, torch.tanh_,
        Tensor.relu, Tensor.relu_, Tensor.tanh, Tensor.tanh_,
    }
)  # fmt: skip


class WatchActivations(TorchFunctionMode):
    """Inside, `saw(input, call)` computes each activation: it gets its input and what computes the output from it."""

    def __init__(self, saw: Callable[[Tensor, Callable[[], Tensor]], Tensor]) -> None:
        super().__init__()
        self._saw = saw

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in ACTIVATIONS:
            return func(*args, **kwargs)
        values: Tensor = args[0] if args else kwargs["input"]
        return self._saw(values, lambda: func(*args, **kwargs))
