"""VKDNW: how evenly a network's weights can be estimated from data, by the spectrum of the Fisher information.

Týbl and Neumann, "Training-free Neural Architecture Search through Variance of Knowledge of Deep Network Weights",
CVPR 2025, arXiv 2502.04975, the score that needs no other (VKDNW_single): the number of layers plus the entropy of the
nine deciles of the eigenvalues of the Fisher information, normalised to sum 1. The entropy is at most log 9, so that
it mostly orders networks of one depth. The paper's setting, from its code: weights drawn by Kaiming's normal rule (fan
in), images of noise, evaluation mode with fresh running statistics, one weight (the first) of every parameter, and
probabilities mixed with 5% of the uniform ones; "layers" are parameters (a weight and a bias are two).

A layer's output is an affine function of its weights, so that its slope times the gradient at the output is an image's
gradient by a weight: one backward pass a class serves all images and weights, where the authors differentiate a copy
of the network for each image.
Deviations: with more than 32 classes, 32 random mixtures of them estimate the information without bias, since every
class costs a backward pass (the authors: all classes, and 128 parameters by lot for ImageNet's networks; here all
parameters). The authors' later code for ImageNet counts the least eigenvalue too; here are the nine inner deciles.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.preserved import preserved
from hwnas.zeroshot.probe import Probe, normal_like

_UNIFORM = 0.05
_MOST_DIRECTIONS = 32


def score(probe: Probe) -> float:
    """Number of parameters (tensors) + entropy of the deciles of the eigenvalues of the Fisher information.

    Of the images only shape, type and device are used. One forward, and a backward a class (32 at most).
    Raises DegenerateNetworkError if all deciles are 0: the output does not depend on the weights, or more images or
    classes are needed.
    """
    information = probe.shared(_information)
    return len(information) + decile_entropy(information)


def _information(probe: Probe) -> Tensor:
    generator = probe.generator()
    with preserved(probe.module, weights=True):
        draw_kaiming_weights(probe.module, generator)
        return fisher_information(probe.module, normal_like(probe.images, generator), generator)


def decile_entropy(information: Tensor) -> float:
    """Entropy (nats) of the normalised deciles 1 to 9 of the eigenvalues of a (p, p) positive semidefinite matrix."""
    if not bool(information.isfinite().all()):
        raise DegenerateNetworkError("the Fisher information holds NaN or infinity")
    eigenvalues = torch.linalg.eigvalsh(information.cpu().double()).clamp(min=0)
    deciles = torch.quantile(eigenvalues, torch.arange(1, 10, device="cpu", dtype=torch.float64) / 10)
    if float(deciles.sum()) <= 0:
        raise DegenerateNetworkError("the Fisher information is zero: the network is dead, or the batch too small")
    return float(torch.special.entr(deciles / deciles.sum()).sum())


def fisher_information(module: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
    """(p, p) Fisher information of the first weight of each of p parameters, over (n, c, h, w) images.

    It is the mean over images of sum_k p_k g_k g_k^T, g_k the gradient of log p_k.
    Raises DegenerateNetworkError if a parameter does not act through the output of its module, as an affine function.
    """
    n, device = len(images), images.device
    column = {id(parameter): number for number, parameter in enumerate(module.parameters())}
    if not column:
        raise DegenerateNetworkError(f"{type(module).__name__} has no parameters")
    jacobian = torch.zeros(n, len(column), dtype=torch.float64, device=device)
    reentered = False
    inputs: dict[nn.Module, tuple[Any, ...]] = {}
    explained: set[int] = set()

    def keep_inputs(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not reentered:
            inputs[part] = _copies(args, kwargs)

    def watch(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal reentered
        if reentered:
            return
        args, kwargs = inputs.pop(part, (args, kwargs))
        if not isinstance(output, Tensor) or len(output) != n:
            given = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise DegenerateNetworkError(f"{type(part).__name__} gives {given}, which is no batch of {n} images")
        if not output.requires_grad:
            return  # it does not depend on the images
        reentered = True
        columns, slopes = [], []
        for name, parameter in part.named_parameters(recurse=False):
            columns.append(column[id(parameter)])
            slopes.append(_slope(part, name, args, kwargs, output.detach()))
        reentered = False
        explained.update(columns)
        output.register_hook(partial(collect, columns, slopes))  # type: ignore[no-untyped-call]

    def collect(columns: list[int], slopes: list[Tensor], gradient: Tensor) -> None:
        for number, slope in zip(columns, slopes, strict=True):
            jacobian[:, number] += (gradient[:, : slope.shape[1]] * slope).flatten(1).sum(1)

    information = torch.zeros(len(column), len(column), dtype=torch.float64, device=device)
    with preserved(module) as hooks:
        module.eval().requires_grad_(False)
        owners = [part for part in module.modules() if part._parameters]
        hooks += [part.register_forward_hook(watch, with_kwargs=True) for part in owners]
        foreign = [part for part in owners if _is_foreign(part)]
        hooks += [part.register_forward_pre_hook(keep_inputs, with_kwargs=True) for part in foreign]
        images = images.clone().requires_grad_(True)
        with torch.enable_grad():
            logits = module(images.clone()).flatten(1)  # the first layer may work in place
        if not logits.requires_grad:
            raise DegenerateNetworkError("the output does not depend on the images")
        reentered = True
        for parameter in module.parameters():
            parameter.requires_grad_(column[id(parameter)] not in explained)
        _refuse_influence(module, images)
        probabilities = logits.detach().softmax(1) * (1 - _UNIFORM) + _UNIFORM / logits.shape[1]
        for weights in _directions(probabilities, generator):
            # a vector-Jacobian product that gives sum_k w_k sqrt(p_k) g_k
            weighted = weights * probabilities.sqrt()
            cotangent = weighted - probabilities * weighted.sum(1, keepdim=True)
            torch.autograd.grad(logits, images, cotangent, retain_graph=True)
            information += jacobian.T @ jacobian / n
            jacobian.zero_()
    return information


def _slope(part: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """(n, 1 or channels, ...) derivative of a module's output by the first entry of its parameter `name`."""
    parameter = part.get_parameter(name)
    step = torch.zeros_like(parameter)
    step[(slice(1),) * step.dim()] = 1

    @torch.no_grad()
    def change(size: int) -> Tensor:
        change: Tensor = functional_call(part, {name: parameter + size * step}, *_copies(args, kwargs)) - output
        return change

    slope = change(1)  # a layer's output is an affine function of each of its weights
    if _is_foreign(part):
        rounding = 1e-3 * float(slope.abs().max()) + 1e-5 * float(output.abs().max())
        if not torch.allclose(change(2), 2 * slope, rtol=0, atol=rounding):
            raise DegenerateNetworkError(f"what {type(part).__name__} gives is no affine function of its {name}")
    # mostly it is about the first channel; a slope shared by channels (PReLU) is about all
    return slope if bool(slope[:, 1:].any()) else slope[:, :1].clone()


def _is_foreign(part: nn.Module) -> bool:
    """Whether it is a module of which we do not know what it does to its inputs, and with its parameters."""
    return not type(part).__module__.startswith("torch.nn.")


def _copies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that may be changed in place."""
    copied = tuple(value.detach().clone() if isinstance(value, Tensor) else value for value in args)
    return copied, {
        name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in kwargs.items()
    }


def _refuse_influence(module: nn.Module, images: Tensor) -> None:
    """Raise DegenerateNetworkError if the output depends on a parameter that requires a gradient."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not names:
        return
    with torch.enable_grad():
        total = module(images.detach().clone()).sum()
    if total.requires_grad:
        found = torch.autograd.grad(total, [module.get_parameter(name) for name in names], allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                raise DegenerateNetworkError(f"{name} does not act through what its module gives for the images")


def _directions(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """(directions, n, classes): one class after the other, or random mixtures whose outer products average to 1."""
    n, classes = probabilities.shape
    if classes <= _MOST_DIRECTIONS:
        return torch.eye(classes, device=probabilities.device)[:, None].expand(-1, n, -1)
    signs = torch.randint(2, (_MOST_DIRECTIONS, n, classes), generator=generator, device=generator.device) * 2 - 1
    return signs.to(probabilities) / math.sqrt(_MOST_DIRECTIONS)


@torch.no_grad()
def draw_kaiming_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Convolutions and linear layers from N(0, 2 / fan in), biases 0; fresh batch normalisations: in place."""
    for part in module.modules():
        if isinstance(part, _ConvNd | nn.Linear) and isinstance(part.weight, nn.Parameter):
            deviation = math.sqrt(2 / part.weight[0].numel())
            part.weight.copy_(normal_like(part.weight, generator) * deviation)
            if part.bias is not None:
                part.bias.zero_()
        elif isinstance(part, _BatchNorm):
            part.reset_parameters()
