"""Fisher: how much the loss would change if single channels were removed, to second order.

Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", arXiv 1801.05787 (and
Turner et al., "BlockSwap", ICLR 2020, arXiv 1906.04113), as Abdelfattah et al., "Zero-Cost Proxies for Lightweight
NAS", ICLR 2021, arXiv 2101.08134, make it a score of a network. As in the code of the latter, the value of a channel
counts once for each of its weights (the paper: once).
"""

from __future__ import annotations

import torch

from hwnas.zeroshot import finite
from hwnas.zeroshot.gradients import loss_gradients
from hwnas.zeroshot.probe import Probe


def score(probe: Probe) -> float:
    """Sum over channels of half the mean over images of (sum over places of output x gradient)^2, times fan-in.

    Needs labels. Raises DegenerateNetworkError if dead.
    """
    found = probe.shared(loss_gradients)
    terms = [
        fan_in * response.square().sum() / (2 * len(response))
        for response, fan_in in zip(found.responses, found.fan_ins, strict=True)
    ]
    return finite(float(torch.stack(terms).sum()), "fisher")
