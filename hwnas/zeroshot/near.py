"""NEAR: how many dimensions the values of an untrained network's layers span, before and after the activations.

Husistein, Reiher and Eckhoff, "NEAR: A Training-Free Pre-Estimator of Machine Learning Model Performance", ICLR 2025,
arXiv 2408.08776: the sum, over layers, of the effective ranks of the pre- and the post-activation matrix. The effective
rank (Roy and Vetterli 2007) is the exponential of the entropy of the singular values, normalised to sum 1.

A matrix has a row for a sample and a column for a unit, and is cut to a square. For convolutions (the paper's appendix,
figure A.3) columns are channels and rows are the pixels of all images, image by image and column by column; of these,
as many contiguous ones as there are channels, from the start of a random pixel column. As in the authors' code, all
layers that have a weight count, batch normalisation too, and activations.

Deviations: activations are seen if they are functions too, but gates (sigmoids) are not counted (`activations.py`). The
authors average over repeated draws of the weights, and gather batches until the squares are full; here there is one
network and one batch, and a matrix can have fewer rows than columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.forward import Observer, gives_channels_last
from hwnas.zeroshot.probe import Probe


def score(probe: Probe) -> float:
    """Sum of the effective ranks of what weighted layers and activations give. One forward; needs no labels.

    A layer that gives zeros adds 0. Raises DegenerateNetworkError without layers, or if a value is not finite.
    """
    return probe.seen(EffectiveRanks)


class EffectiveRanks(Observer[float]):
    """Their sum. Refuses a network without layers, and values that are not finite."""

    def __init__(self, probe: Probe) -> None:
        self._network = type(probe.module).__name__
        self._generator = probe.generator()
        self._ranks: list[float] = []
        self._channels_last = False  # in what the last layer gave; activations have no channels of their own

    def saw_output(self, part: nn.Module, output: Tensor) -> None:
        # PReLU has a weight, but is an activation: seen below
        if getattr(part, "weight", None) is not None and not isinstance(part, nn.PReLU):
            self._channels_last = gives_channels_last(part)
            self.saw_activation(output)

    def saw_activation(self, output: Tensor) -> None:
        if output.dim() == 4 and self._channels_last:
            output = output.movedim(-1, 1)
        if output.dim() > 1:
            self._ranks.append(effective_rank(activation_matrix(output, self._generator)))

    def finish(self, images: Tensor, logits: Tensor) -> float:
        if not self._ranks:
            raise DegenerateNetworkError(f"{self._network} has neither layers with weights nor activations")
        return math.fsum(self._ranks)


OBSERVERS = (EffectiveRanks,)


def activation_matrix(output: Tensor, generator: torch.Generator) -> Tensor:
    """(rows, units) of what a layer gives, at most as many rows as units; (n, c, h, w) and (..., units) are known."""
    if output.dim() != 4:
        rows = output.flatten(0, -2)
        return rows[: rows.shape[1]]
    n, channels, height, width = output.shape
    pixels = height * width
    # the last start after which the square is full; without one, all rows
    starts = max(0, n * pixels - channels) // height + 1
    start = height * int(torch.randint(starts, (), generator=generator, device=generator.device))
    end = min(start + channels, n * pixels)
    first = start // pixels
    images = output[first : -(-end // pixels)]  # those that the rows are in
    rows = images.permute(0, 3, 2, 1).reshape(-1, channels)
    return rows[start - first * pixels : end - first * pixels]


def effective_rank(matrix: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of (rows, columns); 0 for zeros.

    Raises DegenerateNetworkError if a value is NaN or infinite.
    """
    if not bool(matrix.isfinite().all()):
        raise DegenerateNetworkError("a layer gives NaN or infinity")
    values = matrix.double()
    # eigenvalues of the smaller Gram matrix are cheaper than singular values; float64 keeps their roots to 1e-8
    gram = values @ values.T if values.shape[0] < values.shape[1] else values.T @ values
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = singular.sum()
    return float(torch.special.entr(singular / total).sum().exp()) if float(total) > 0 else 0.0
