"""Linear regions: how many different linear functions an untrained network is on the images of a batch.

Chen et al., "Neural Architecture Search on ImageNet in Four GPU Hours: A Theoretically Inspired Perspective" (TE-NAS),
ICLR 2021, arXiv 2102.11535, section 3.1.2 (its other term is in `ntk.py`). Two images are in one region if they
activate the same units.

Deviations: `activations.py` says what counts as a unit, the paper knows ReLU only. The authors shrink networks and
images until thousands of images fill the regions; here the network is scored as it is, on the batch as it is. With a
batch of photographs nearly every network gives the number of images: then this score ties, and only tells dead ones.
"""

from __future__ import annotations

from hwnas.zeroshot.codes import ActivationCodes
from hwnas.zeroshot.probe import Probe

OBSERVERS = (ActivationCodes,)


def score(probe: Probe) -> float:
    """Number of images with different activation codes, exactly; 1 for a dead network. One forward, no labels.

    Raises DegenerateNetworkError with fewer than two images or without activations.
    """
    codes = probe.seen(ActivationCodes)
    same = codes.kernel == codes.units
    seen_before = same.tril(-1).any(1)
    return float((~seen_before).sum())
