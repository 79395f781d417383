"""SWAP: in how many different ways the units of an untrained network divide a batch of images.

Peng et al., "SWAP-NAS: Sample-Wise Activation Patterns for Ultra-Fast NAS", ICLR 2024, arXiv 2403.04161, definitions
3.1 to 3.3. A unit's pattern says which images activate it; the score is the number of different patterns, of 2^n there
could be. It grows with width and depth, and stops telling networks apart where 2^n is small: give 16 images or more.

Deviations: `activations.py` says what counts as a unit, the paper knows ReLU only. The paper's regularised score, which
also holds the number of weights near a wanted one, is not here: a search with a limit on size does that.
"""

from __future__ import annotations

import torch

from hwnas.zeroshot.codes import ActivationCodes
from hwnas.zeroshot.probe import Probe

OBSERVERS = (ActivationCodes,)


def score(probe: Probe) -> float:
    """Number of different sample-wise activation patterns, exactly. One forward; needs no labels, draws nothing.

    Raises DegenerateNetworkError with fewer than two images or without activations.
    """
    words = probe.seen(ActivationCodes).words.long()
    # Rows are compared word by word, by their rank among the rows so far: sorting numbers is faster than sorting rows,
    # and a rank and a word, both below 2**31, fit into 63 bits
    patterns = words[:, 0]
    for word in words.T[1:]:
        ranks = torch.unique(patterns, return_inverse=True)[1]
        patterns = (ranks << 31) + word
    return float(len(torch.unique(patterns)))
