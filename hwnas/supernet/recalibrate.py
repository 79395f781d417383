"""Statistics of batch normalisations, which every subnet needs of its own.

The running means and variances that were gathered while many subnets were trained fit none of them (Yu & Huang 2019,
arXiv 1903.05134, section 3.3; Once-for-All and BigNAS recalibrate likewise). They are measured anew on training images:
the average over the batches, all of which count alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

Normalisation = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def normalisations(module: nn.Module) -> Iterator[Normalisation]:
    """The batch normalisations of a module."""
    return (part for part in module.modules() if isinstance(part, Normalisation))


def without_statistics(normalisation: Normalisation) -> None:
    """Let it normalise by the batch, in every mode, and have no statistics in its state."""
    normalisation.track_running_stats = False
    normalisation.running_mean = normalisation.running_var = normalisation.num_batches_tracked = None


def reset_statistics(normalisation: Normalisation) -> None:
    """Give it initial statistics: mean 0, variance 1, no batch seen."""
    where = normalisation.weight.device
    buffers = normalisation._buffers  # torch's own way takes a dozen checks for each of hundreds
    buffers["running_mean"] = torch.zeros(normalisation.num_features, device=where)
    buffers["running_var"] = torch.ones(normalisation.num_features, device=where)
    buffers["num_batches_tracked"] = torch.zeros((), dtype=torch.int64, device=where)


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Measure the statistics of a network's batch normalisations on batches of what it reads; it is then in evaluation.

    Its weights stay as they are. Returns the network.
    """
    found = list(normalisations(network))
    momenta = [normalisation.momentum for normalisation in found]
    network.eval()
    for normalisation in found:
        reset_statistics(normalisation)
        normalisation.momentum = None  # the average over all batches
        normalisation.train()
    try:
        with torch.no_grad():
            for batch in batches:
                network(batch)
    finally:
        for normalisation, momentum in zip(found, momenta, strict=True):
            normalisation.momentum = momentum
            normalisation.eval()
    return network
