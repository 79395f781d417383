"""AZ-NAS: expressivity, progressivity and trainability of the blocks of an untrained network.

Lee and Ham, "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search", CVPR 2024, arXiv 2403.19232,
section 3.2. Written from its formulas. The paper ranks architectures by the sum of the logarithms of their ranks in
these three and in FLOPs: `combine.py` does that for any scores.

Deviations: the images and weights that are given are used (the authors draw both from a normal distribution, which
batch normalisation makes much the same); a map whose size is no multiple of the next one's is padded with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.forward import Observer
from hwnas.zeroshot.probe import Probe
from hwnas.zeroshot.stages import BlockFeatures

_EPSILON = 1e-6


@dataclass(frozen=True)
class Blocks:
    """Of each block in order: the entropy of its features, and how well its Jacobian keeps norms, 0 is best."""

    entropies: tuple[float, ...]
    trainabilities: tuple[float, ...]


def expressivity(probe: Probe) -> float:
    """Sum over blocks of the entropy of the eigenvalues of the feature covariance (equations 1 to 3)."""
    return sum(probe.seen(BlockStatistics).entropies)


def progressivity(probe: Probe) -> float:
    """The smallest increase of that entropy from a block to the next (equation 4)."""
    return min(after - before for before, after in pairwise(probe.seen(BlockStatistics).entropies))


def trainability(probe: Probe) -> float:
    """Mean over blocks of -s - 1/s + 2, s the largest singular value of the block's Jacobian (equations 5 to 9)."""
    found = probe.seen(BlockStatistics).trainabilities
    return sum(found) / len(found)


class BlockStatistics(Observer[Blocks]):
    """By a backward from every block to the one before. Refuses fewer than two blocks, and dead ones."""

    needs_graph = True

    def __init__(self, probe: Probe) -> None:
        self._features = BlockFeatures(probe.module)
        self._generator = probe.generator()

    def saw_call(self, part: nn.Module, inputs: tuple[Any, ...], output: Any) -> bool:
        return self._features.saw_call(part, inputs, output)

    def finish(self, images: Tensor, logits: Tensor) -> Blocks:
        features = self._features.found()
        return blocks_of(features, [random_signs(block, self._generator) for block in features[1:]])


OBSERVERS = (BlockStatistics,)


def blocks_of(features: Sequence[Tensor], signs: Sequence[Tensor]) -> Blocks:
    """From (n, c, h, w) features of consecutive blocks, and vectors of signs (n, c, h, w) for all but the first."""
    entropies = tuple(entropy(block.detach()) for block in features)
    trainabilities = []
    for (before, after), vector in zip(pairwise(features), signs, strict=True):
        back = None
        if before.requires_grad and after.requires_grad:
            (back,) = torch.autograd.grad(after, before, vector, retain_graph=True, allow_unused=True)
        if back is None:
            raise DegenerateNetworkError("a block does not depend on the block before it, or that one on the images")
        trainabilities.append(keeps_norm(_largest_singular_value(back, vector)))
    return Blocks(entropies, tuple(trainabilities))


def entropy(features: Tensor) -> float:
    """Entropy of the normalised eigenvalues of the (c, c) covariance of (n, c, h, w) features over images and pixels.

    Raises DegenerateNetworkError if they are constant or not finite.
    """
    rows = features.movedim(1, -1).flatten(0, -2).float()  # no copy, where channels are last in memory
    rows = rows - rows.mean(dim=0)
    # of more channels than pixels the covariance has the eigenvalues of the smaller matrix, and zeros
    gram = rows.T @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.T
    covariance = (gram / rows.shape[0]).double()
    total = float(covariance.trace())
    if not 0 < total < float("inf"):  # also true of NaN
        raise DegenerateNetworkError(f"the features of a block have the variance {total}: the network is dead")
    values = torch.linalg.eigvalsh(covariance / total).clamp_(min=0)  # rounding can make them negative
    return float(torch.special.entr(values).sum())


def keeps_norm(singular_value: float) -> float:
    """-s - 1/s + 2: 0 where a Jacobian keeps norms, negative where it blows them up or lets them vanish."""
    return -singular_value - 1 / (singular_value + _EPSILON) + 2


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """-1 or 1 in the shape, type and place of a tensor."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=like.dtype, device=generator.device)
    return torch.empty_like(like).copy_(drawn).mul_(2).sub_(1)


def _largest_singular_value(back: Tensor, vector: Tensor) -> float:
    """Of the mean over images and pixels of J' v v', where back (n, c', h', w') is J' v: as v has mean outer product 1.

    Where the block halves the map, the pixels that fall on one count as channels.
    """
    h, w = vector.shape[-2:]
    down, right = -(-back.shape[-2] // h), -(-back.shape[-1] // w)
    padding = (0, w * right - back.shape[-1], 0, h * down - back.shape[-2])
    if any(padding):
        back = F.pad(back, padding)
    # a row for each image and pixel: no copies, where channels are last in memory
    pixels = back.reshape(*back.shape[:2], h, down, w, right)
    inner = pixels.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).flatten(1)
    outer = vector.movedim(1, -1).flatten(0, 2)
    matrix = inner.T @ outer / len(outer)
    if not bool(matrix.isfinite().all()):
        raise DegenerateNetworkError("the Jacobian of a block holds NaN or infinity")
    matrix = matrix.double()
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt())
