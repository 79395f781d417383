"""The binary codes of a batch: which activation units are active for which image (`activations.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.forward import Observer
from hwnas.zeroshot.probe import Probe

# Integers below 2**24 are exact in float32
_WORD_BITS = 24
# Dot products of signs in float32 are exact up to 2**24 terms; fewer at once bound the memory
_CHUNK_BITS = 2**22


@dataclass(frozen=True)
class Codes:
    """The binary codes of n images, one bit per activation unit.

    kernel (n, n) float64: in how many units two images agree. units: how many there are. words (units, ceil(n / 24))
    int32: which images activate a unit, 24 images packed into a word.
    """

    kernel: Tensor
    units: int
    words: Tensor


class ActivationCodes(Observer[Codes]):
    """The codes of the batch.

    Refuses fewer than two images, a network without activations, and activations that are not finite.
    """

    def __init__(self, probe: Probe) -> None:
        images = probe.images
        n = len(images)
        if n < 2:
            raise DegenerateNetworkError("one image has nothing to differ from: give at least two")
        self._network = type(probe.module).__name__
        self._kernel = torch.zeros(n, n, dtype=torch.float64, device=images.device)
        self._words: list[Tensor] = []
        self._extremes: list[Tensor] = []

    def saw_activation_input(self, values: Tensor) -> None:
        n = len(self._kernel)
        if values.shape[:1] != (n,):
            raise DegenerateNetworkError(f"an activation sees {tuple(values.shape)}, which is no batch of {n} images")
        self._extremes += torch.aminmax(values)  # NaN if one value is; ten times faster than isfinite
        self._words.append(add_agreements(self._kernel, values > 0))

    def finish(self, images: Tensor, logits: Tensor) -> Codes:
        if not self._words:
            raise DegenerateNetworkError(f"{self._network} has no activations")
        if not bool(torch.stack(self._extremes).isfinite().all()):
            raise DegenerateNetworkError("the activations hold NaN or infinity")
        words = torch.cat(self._words)
        return Codes(self._kernel, len(words), words)


def add_agreements(kernel: Tensor, active: Tensor) -> Tensor:
    """Add to (n, n) in how many units two rows of (n, ...) bool agree, exactly; gives the packed (units, words)."""
    # units in the order in memory: to reorder them would take longer
    last = active.dim() == 4 and active.is_contiguous(memory_format=torch.channels_last)
    codes = (active.movedim(1, -1) if last else active).flatten(1)
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
