"""Jacobian covariance: how differently the images of a batch move the output.

Mellor et al., "Neural Architecture Search without Training", arXiv 2006.04647v1 (the first version of
the NASWOT paper), as in Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021, arXiv 2101.08134. Here
the correlations and their eigenvalues are computed in float64, so that a singular matrix (equal images) has
eigenvalues of 0 and a finite score, a very low one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwnas.zeroshot import DegenerateNetworkError, finite
from hwnas.zeroshot.forward import Observer
from hwnas.zeroshot.gradients import gradients
from hwnas.zeroshot.probe import Probe

_K = 1e-5


def score(probe: Probe) -> float:
    """-sum(log(v + k) + 1 / (v + k)), v the eigenvalues of the correlation of the images' input gradients, k = 1e-5.

    One forward and backward; needs no labels. Raises DegenerateNetworkError with fewer than two images, or if the
    gradient of an image is constant.
    """
    return finite(spread(probe.seen(ImageGradients)), "jacob_cov")


class ImageGradients(Observer[Tensor]):
    """(n, inputs) gradients of the summed outputs by the images. Refuses fewer than two images."""

    needs_graph = True

    def __init__(self, probe: Probe) -> None:
        if len(probe.images) < 2:
            raise DegenerateNetworkError("one image has nothing to correlate with: give at least two")

    def finish(self, images: Tensor, logits: Tensor) -> Tensor:
        with torch.enable_grad():
            total = logits.sum()
        (found,) = gradients(total, [images], retain_graph=True)
        return found.flatten(1)


OBSERVERS = (ImageGradients,)


def spread(rows: Tensor) -> float:
    """The score of gradients (n, inputs). Raises DegenerateNetworkError if one has no correlation."""
    rows = rows.double()
    if not bool(rows.isfinite().all()):
        raise DegenerateNetworkError("the gradients of the images hold NaN or infinity")
    constant = (rows == rows[:, :1]).all(1).nonzero().flatten().tolist()
    if constant:
        raise DegenerateNetworkError(f"the gradient of image {constant[0]} is constant: the network does not see it")
    values = torch.linalg.eigvalsh(torch.corrcoef(rows)).clamp(min=0) + _K
    return -float((values.log() + 1 / values).sum())
