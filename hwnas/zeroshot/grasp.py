"""GraSP: how much the gradient norm would change if single weights were removed, to first order.

Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020, arXiv 2002.07376,
as Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021, arXiv 2101.08134, equation 1,
make it a score of a network. Temperature 1, one batch.

The sum over all weights of (H g) w is the derivative of half the squared norm of g by a number t that scales all
weights, at t = 1. So the second differentiation is by t, and needs no second derivatives by the weights of
convolutions, which are the dearest (`twice.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from hwnas.zeroshot import DegenerateNetworkError, finite
from hwnas.zeroshot.gradients import differentiable, gradients, mean_loss
from hwnas.zeroshot.probe import Probe
from hwnas.zeroshot.twice import Convolution, Normalisation


class _Scaled(TorchFunctionMode):
    """Convolutions with the given weights use t times `aliases` of them, t = 1: other uses have the weights themselves.

    And the gates of mobile networks are functions that PyTorch differentiates twice, which it does not hardsigmoid.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.t = torch.ones((), dtype=torch.float64, device=weights[0].device).requires_grad_()
        self.aliases = [weight.detach().requires_grad_() for weight in weights]
        self._alias_of = {id(weight): alias for weight, alias in zip(weights, self.aliases, strict=True)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.hardsigmoid:
            values: Tensor = args[0] if args else kwargs["input"]
            return F.relu6(values + 3) / 6
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        # as nn.Conv2d calls it
        if func is F.conv2d and len(args) == 7 and args[0].dim() == 4 and id(args[1]) in self._alias_of:
            inputs, weight, bias, *options = args
            if not isinstance(options[1], str):  # the name of a padding
                output: Tensor = Convolution.apply(inputs, self._alias_of[id(weight)], self.t, *options)
                return output if bias is None else output + bias[:, None, None]
        return func(*args, **kwargs)


def score(probe: Probe) -> float:
    """Sum of -(H g) w over the weights of all layers, g the gradient of the loss and H its Hessian.

    Needs labels. Raises DegenerateNetworkError if no gradient reaches any weight.
    """
    return probe.shared(_score)


def _score(probe: Probe) -> float:
    labels = probe.labels
    with differentiable(probe.module) as (_, weights):
        scaled = _Scaled(weights)
        with scaled, sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            loss = mean_loss(probe.module, probe.images, labels)
        parts = gradients(loss, [*scaled.aliases, *weights], create_graph=True)
        by_scaled, by_others = parts[: len(weights)], parts[len(weights) :]
        slopes = [one + other for one, other in zip(by_scaled, by_others, strict=True)]
        half_square = torch.stack([slope.square().sum() for slope in slopes]).sum() / 2
        if not half_square:
            raise DegenerateNetworkError("no gradient reaches any weight: the network is dead")
        by_t, *products = gradients(half_square, [scaled.t, *weights])
    terms = [(weight.detach() * product).sum() for weight, product in zip(weights, products, strict=True)]
    return finite(-float(torch.stack([by_t, *terms]).sum()), "grasp")


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm, by the statistics of the batch in the way that is cheap to differentiate twice."""
    affine = [tensor for tensor in (weight, bias) if tensor is not None]
    known = all(tensor.is_leaf and tensor.dtype == input.dtype for tensor in affine) and input.dtype.itemsize >= 4
    if not training or running_mean is not None or not known or input.numel() == input.shape[1]:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    output: Tensor = Normalisation.apply(input, weight, bias, eps)
    return output
