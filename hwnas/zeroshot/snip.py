"""SNIP: how much the loss would change if single weights were removed, to first order.

Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019, arXiv 1810.02340,
without its normalisation, as Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021, arXiv 2101.08134,
equation 1, make it a score of a network.
"""

from __future__ import annotations

import torch

from hwnas.zeroshot import finite
from hwnas.zeroshot.gradients import loss_gradients
from hwnas.zeroshot.probe import Probe


def score(probe: Probe) -> float:
    """Sum of |w dL/dw| over the weights of all layers. Needs labels. Raises DegenerateNetworkError if dead."""
    found = probe.shared(loss_gradients)
    layers = zip(found.weights, found.gradients, strict=True)
    return finite(float(torch.stack([(w * g).abs().sum() for w, g in layers]).sum()), "snip")
