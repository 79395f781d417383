"""NTK: how evenly an untrained network would learn the images of a batch, by its neural tangent kernel.

Chen et al., "Neural Architecture Search on ImageNet in Four GPU Hours: A Theoretically Inspired Perspective" (TE-NAS),
ICLR 2021, arXiv 2102.11535, section 3.1.1: the condition number of the kernel K[i, j] = <g_i, g_j>, the largest
eigenvalue over the smallest; here its negative, so that higher is better. As in the authors' code, g_i is the gradient
of the sum of image i's logits by all parameters whose name contains `weight`, and batch normalisation uses the
statistics of the batch.

Through these statistics every image's logits depend on every image, so that n gradients are n full backward passes,
and no cheaper: the slowest score here. Vectorising the passes (`is_grads_batched`) was not faster on a CPU, where the
time is in the convolutions. Deviation: a kernel that is singular in float32 (two equal images, a dead network) is a
reason; the authors divide by its rounding noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.preserved import preserved, use_batch_statistics
from hwnas.zeroshot.probe import Probe


def score(probe: Probe) -> float:
    """Minus the condition number of the tangent kernel, at most -1. n backward passes; no labels, draws nothing.

    Needs memory for n gradients of all weights. Raises DegenerateNetworkError where the kernel is singular.
    """
    return -condition_number(probe.shared(_kernel))


def _kernel(probe: Probe) -> Tensor:
    return tangent_kernel(probe.module, probe.images)


def condition_number(kernel: Tensor) -> float:
    """Largest over smallest eigenvalue of an (n, n) kernel of float32 gradients. Raises DegenerateNetworkError."""
    if not bool(kernel.isfinite().all()):
        raise DegenerateNetworkError("the tangent kernel holds NaN or infinity")
    eigenvalues = torch.linalg.eigvalsh(kernel.double())
    least, most = float(eigenvalues[0]), float(eigenvalues[-1])
    if least <= len(kernel) * torch.finfo(torch.float32).eps * most:
        raise DegenerateNetworkError(
            f"the tangent kernel is singular, its eigenvalues are from {least:.3g} to {most:.3g}: "
            "the network is dead, or images are equal"
        )
    return most / least


def tangent_kernel(module: nn.Module, images: Tensor) -> Tensor:
    """(n, n) float64 inner products of the n images' gradients of the summed logits by the weights."""
    if len(images) < 2:
        raise DegenerateNetworkError("a kernel of one image has no condition: give at least two")
    with preserved(module):
        use_batch_statistics(module)
        weights = []
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("weight" in name)  # biases would only cost time
            weights += [parameter] if parameter.requires_grad else []
        if not weights:
            raise DegenerateNetworkError(f"{type(module).__name__} has no weights")
        with torch.enable_grad():
            logits = module(images).flatten(1).sum(1)
        if not logits.requires_grad:
            raise DegenerateNetworkError("the output does not depend on the weights")
        jacobian = weights[0].new_empty(len(images), sum(weight.numel() for weight in weights))
        for row, logit in zip(jacobian, logits, strict=True):
            gradients = torch.autograd.grad(logit, weights, retain_graph=True, materialize_grads=True)
            # in the order in memory, which is the same for all images: to reorder takes longer
            torch.cat([_in_memory_order(gradient) for gradient in gradients], out=row)
    return (jacobian @ jacobian.T).double()


def _in_memory_order(gradient: Tensor) -> Tensor:
    last = gradient.dim() == 4 and gradient.is_contiguous(memory_format=torch.channels_last)
    return gradient.movedim(1, -1).flatten() if last else gradient.flatten()
