"""GraSP: how much the gradient norm would change if single weights were removed, to first order.

Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020, arXiv 2002.07376,
as Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021, arXiv 2101.08134, equation 1,
make it a score of a network. Temperature 1, one batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from hwnas.zeroshot import DegenerateNetworkError, finite
from hwnas.zeroshot.gradients import differentiable, gradients, mean_loss
from hwnas.zeroshot.probe import Probe


class _TwiceDifferentiable(TorchFunctionMode):
    """The gates of mobile networks by functions that PyTorch differentiates twice, which it does not hardsigmoid."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.hardsigmoid:
            values: Tensor = args[0] if args else kwargs["input"]
            return F.relu6(values + 3) / 6
        return func(*args, **kwargs)


def score(probe: Probe) -> float:
    """Sum of -(H g) w over the weights of all layers, g the gradient of the loss and H its Hessian.

    Needs labels. Raises DegenerateNetworkError if no gradient reaches any weight.
    """
    labels = probe.labels
    with differentiable(probe.module) as (_, weights):
        with _TwiceDifferentiable(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            loss = mean_loss(probe.module, probe.images, labels)
        slopes = gradients(loss, weights, create_graph=True)
        # H g is the gradient of half the squared norm of g
        half_square = torch.stack([slope.square().sum() for slope in slopes]).sum() / 2
        if not half_square:
            raise DegenerateNetworkError("no gradient reaches any weight: the network is dead")
        products = gradients(half_square, weights)
    total = torch.stack([(weight.detach() * p).sum() for weight, p in zip(weights, products, strict=True)]).sum()
    return finite(-float(total), "grasp")
