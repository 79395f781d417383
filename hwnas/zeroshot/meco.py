"""MeCo: how far from redundant the channels of an untrained network are, for one image.

Jiang, Wang and Bie, "MeCo: Zero-Shot NAS with One Data and Single Forward Pass via Minimum Eigenvalue of Correlation",
NeurIPS 2023, section 4: the sum, over layers, of the least eigenvalue of the Pearson correlation matrix of channels,
the pixels of the image being the observations.

A layer adds 0 if one of its channels is constant or depends on the others, and so if it has as many channels as pixels
or more (1x1 maps): the authors' code, which gives a constant channel the correlation 0 with everything and itself,
comes to the same but for rounding.
Deviations: the authors look at the output of every module, so that a container counts once more what its last part
gives, and the score depends on how the code is organised; here each tensor counts once. The image is the first of the
batch (theirs: noise, or data), and the statistics of batch normalisation are those of the batch: one image is the
paper's setting.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.forward import Observer, gives_channels_last
from hwnas.zeroshot.probe import Probe


def score(probe: Probe) -> float:
    """Sum over all (n, c, h, w) feature maps of the least eigenvalue of the correlations of the first image's channels.

    One forward; needs no labels, draws nothing. 0 where every layer is redundant, as in a dead network.
    Raises DegenerateNetworkError if there is no feature map, or a value that is not finite.
    """
    return probe.seen(LeastEigenvalues)


class LeastEigenvalues(Observer[float]):
    """Their sum. Refuses a network without feature maps, and values that are not finite."""

    def __init__(self, probe: Probe) -> None:
        self._network = type(probe.module).__name__
        self._least: list[float] = []

    def saw_output(self, part: nn.Module, output: Tensor) -> None:
        if output.dim() == 4:
            if gives_channels_last(part):
                output = output.movedim(-1, 1)
            self._least.append(least_eigenvalue(output[0].flatten(1)))

    def finish(self, images: Tensor, logits: Tensor) -> float:
        if not self._least:
            raise DegenerateNetworkError(f"{self._network} makes no (n, c, h, w) feature map")
        return math.fsum(self._least)


OBSERVERS = (LeastEigenvalues,)


def least_eigenvalue(channels: Tensor) -> float:
    """Least eigenvalue, in [0, 1], of the correlation matrix of (c, pixels) values; 0 if a channel is constant.

    Raises DegenerateNetworkError if a value is NaN or infinite.
    """
    if not bool(channels.isfinite().all()):
        raise DegenerateNetworkError("a feature map holds NaN or infinity")
    if channels.shape[0] >= channels.shape[1]:
        return 0.0  # c vectors of sum 0 in at most c dimensions depend on each other
    values = channels.double()
    centred = values - values.mean(1, keepdim=True)
    norms = centred.norm(dim=1, keepdim=True)
    # the mean of equal numbers is not exactly their value
    if bool((norms <= 1e-12 * values.norm(dim=1, keepdim=True)).any()):
        return 0.0
    centred /= norms
    return max(0.0, float(torch.linalg.eigvalsh(centred @ centred.T)[0]))
