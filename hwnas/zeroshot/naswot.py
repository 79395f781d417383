"""NASWOT: how differently an untrained network treats the images of a batch.

Mellor et al., "Neural Architecture Search without Training", ICML 2021, arXiv 2006.04647v3, equations 1 and 2. Every
image has a binary code, one bit per activation unit; the kernel is K[i, j] = N_A - Hamming(code i, code j), N_A units;
the score is log|det K|. Batch normalisation uses the statistics of the batch, as in the authors' code.

Beyond the paper, which knows ReLU only: `activations.py` says what counts as a unit. The authors get -infinity, or
finite rounding noise, for a singular kernel; here that is a reason.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.codes import ActivationCodes
from hwnas.zeroshot.probe import Probe

OBSERVERS = (ActivationCodes,)


def score(probe: Probe) -> float:
    """log|det K| of the activation codes of a batch (equation 2). One forward; needs no labels, draws nothing.

    The authors' batch is 128. Real images: on the same 120 cells of NAS-Bench-201 the Spearman correlation with
    accuracy was 0.79 with 32 images of CIFAR-10 and 0.67 with 32 of noise.
    Raises DegenerateNetworkError where K is singular.
    """
    return log_determinant(probe.seen(ActivationCodes).kernel)


def log_determinant(agreements: Tensor) -> float:
    """log|det K| of an (n, n) kernel, in float64. Raises DegenerateNetworkError if it is singular."""
    n = len(agreements)
    twins = (agreements == agreements.diagonal()).triu(1).nonzero()
    if len(twins):
        first, second = twins[0].tolist()
        raise DegenerateNetworkError(
            f"images {first} and {second} have the same code: the network is dead, or the images are equal"
        )
    rank = int(torch.linalg.matrix_rank(agreements, hermitian=True))
    if rank < n:
        raise DegenerateNetworkError(f"the kernel of {n} images is singular, its rank is {rank}: too few units")
    return float(torch.linalg.slogdet(agreements).logabsdet)
