"""The activations of a network, whether they are modules or functions, and the binary codes of a batch.

A unit is active for an image where the *input* of its activation is positive: for ReLU (and ReLU6, leaky ReLU, SiLU,
GELU, hard-swish...) that is where the output is. Sigmoid and hard-sigmoid are not counted: in mobile networks they are
gates beside the main path (squeeze-and-excitation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.preserved import preserved, use_batch_statistics
from hwnas.zeroshot.probe import Probe

# What nn.ReLU, nn.GELU and the others call, and what users call instead of them; their first argument is the input
ACTIVATIONS = frozenset(
    {
        F.relu, F.relu_, F.relu6, F.hardtanh, F.hardtanh_, F.leaky_relu, F.leaky_relu_, F.prelu, F.rrelu, F.rrelu_,
        F.elu, F.elu_, F.selu, F.selu_, F.celu, F.celu_, F.gelu, F.silu, F.mish, F.hardswish, F.softplus, F.tanh,
        torch.relu, torch.relu_, torch.prelu, torch.selu, torch.celu, torch.tanh, torch.tanh_,
        Tensor.relu, Tensor.relu_, Tensor.tanh, Tensor.tanh_,
    }
)  # fmt: skip

# Integers below 2**24 are exact in float32
_WORD_BITS = 24
# Dot products of signs in float32 are exact up to 2**24 terms; fewer at once bound the memory
_CHUNK_BITS = 2**22


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


@dataclass(frozen=True)
class Codes:
    """The binary codes of n images, one bit per activation unit.

    kernel (n, n) float64: in how many units two images agree. units: how many there are. words (units, ceil(n / 24))
    int32: which images activate a unit, 24 images packed into a word.
    """

    kernel: Tensor
    units: int
    words: Tensor


def activation_codes(probe: Probe) -> Codes:
    """The codes of the batch, by one forward in which batch normalisation uses the statistics of the batch.

    Raises DegenerateNetworkError with fewer than two images, without activations, or if they are not finite.
    """
    images = probe.images
    n = len(images)
    if n < 2:
        raise DegenerateNetworkError("one image has nothing to differ from: give at least two")
    kernel = torch.zeros(n, n, dtype=torch.float64, device=images.device)
    words: list[Tensor] = []
    healthy: list[Tensor] = []

    def saw(values: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if values.shape[0] != n:
            raise DegenerateNetworkError(f"an activation sees {tuple(values.shape)}, which is no batch of {n} images")
        healthy.append(values.isfinite().all())  # before it is computed, since it can work in place
        words.append(add_agreements(kernel, values > 0))
        return compute()

    with preserved(probe.module), torch.inference_mode():
        use_batch_statistics(probe.module)
        with WatchActivations(saw):
            probe.module(images)
    if not words:
        raise DegenerateNetworkError(f"{type(probe.module).__name__} has no activations")
    if not bool(torch.stack(healthy).all()):
        raise DegenerateNetworkError("the activations hold NaN or infinity")
    packed = torch.cat(words)
    return Codes(kernel, len(packed), packed)


def add_agreements(kernel: Tensor, active: Tensor) -> Tensor:
    """Add to (n, n) in how many units two rows of (n, ...) bool agree, exactly; gives the packed (units, words)."""
    codes = active.flatten(1)
    n = len(codes)
    powers = torch.zeros(-(-n // _WORD_BITS), n, device=codes.device)
    for image in range(n):
        powers[image // _WORD_BITS, image] = 2.0 ** (image % _WORD_BITS)
    width = max(1, _CHUNK_BITS // n)
    words = []
    for start in range(0, codes.shape[1], width):
        bits = codes[:, start : start + width].float()
        words.append((powers @ bits).T.int())  # sums of distinct powers of two, exact in float32
        signs = bits.mul_(2).sub_(1)
        kernel += (signs @ signs.T).double().add_(signs.shape[1]).div_(2)  # s_i . s_j = agree - disagree
    return torch.cat(words) if words else powers.T.int()[:0]
