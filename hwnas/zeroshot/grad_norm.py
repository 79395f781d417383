"""Gradient norm: how strongly the loss reacts to the weights.

The baseline of Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021, arXiv 2101.08134, section 3.1.
The paper speaks of the sum of Euclidean norms of the gradients; its code sums one norm a layer, and so do we.
"""

from __future__ import annotations

import torch

from hwnas.zeroshot import finite
from hwnas.zeroshot.gradients import loss_gradients
from hwnas.zeroshot.probe import Probe


def score(probe: Probe) -> float:
    """Sum over layers of ||dL/dw||. Needs labels. Raises DegenerateNetworkError if dead."""
    norms = [gradient.norm() for gradient in probe.shared(loss_gradients).gradients]
    return finite(float(torch.stack(norms).sum()), "grad_norm")
