"""Zen-score: how strongly an untrained network's features react to its input, made comparable over scales.

Lin et al., "Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition", ICCV 2021, arXiv 2102.01063, algorithm 1.
With weights drawn from N(0, 1), x and e from N(0, 1) and alpha = 0.01:
score = log E||f(x) - f(x + alpha e)|| + sum over batch normalisations of log sqrt(mean over channels of the variance),
f the feature map before global pooling. The second term undoes the normalisation, which hides the scale of a layer.

The authors' code differs from the paper: the norm is L1 (the paper: Frobenius), and a variance is the running one after
the two forwards, 0.81 + 0.09 v(x) + 0.1 v(x + alpha e), which squeezes small variances together (the paper: that of the
batch). `variant` chooses. Our deviation from both: they remove the residual links of a network, which only their own
network classes can do; we score the network as it is. Compare residual networks with residual networks.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.features import pooled_features
from hwnas.zeroshot.preserved import preserved, refuse_single_values, use_batch_statistics
from hwnas.zeroshot.probe import Probe, normal_like

Variant = Literal["paper", "authors"]


def score(probe: Probe, *, variant: Variant = "paper", repeats: int = 1, alpha: float = 0.01) -> float:
    """Mean Zen-score over `repeats` draws of weights and inputs (the authors: 32 draws, batches of 16).

    Of the images only shape, type and device are used. Takes two forwards a repeat.
    Raises DegenerateNetworkError for a network whose features do not depend on its input.
    """
    return probe.shared(partial(_score, variant=variant, repeats=repeats, alpha=alpha))


def _score(probe: Probe, *, variant: Variant, repeats: int, alpha: float) -> float:
    values, module, generator = [], probe.module, probe.generator()
    with preserved(module, weights=True):
        for _ in range(repeats):
            draw_gaussian_weights(module, generator)
            inputs, noise = (normal_like(probe.images, generator) for _ in range(2))
            values.append(zen_score(module, inputs, noise, variant=variant, alpha=alpha))
    return math.fsum(values) / repeats


def zen_score(
    module: nn.Module, inputs: Tensor, noise: Tensor, *, variant: Variant = "paper", alpha: float = 0.01
) -> float:
    """Zen-score with the weights that the module has. inputs, noise: (n, c, h, w) float."""
    if len(inputs) < 2:
        raise DegenerateNetworkError("the statistics of a batch need at least two images")
    authors = variant == "authors"
    with preserved(module) as hooks, torch.inference_mode():
        use_batch_statistics(module)
        hooks += refuse_single_values(module)
        features, variances = _features_and_variances(module, inputs.clone(), correction=int(authors))
        moved = inputs + alpha * noise
        if authors:
            other_features, second = _features_and_variances(module, moved, correction=1)
            variances = [0.81 + 0.09 * v1 + 0.1 * v2 for v1, v2 in zip(variances, second, strict=True)]
        else:
            other_features = pooled_features(module, moved)
        difference = (features - other_features).flatten(1)
    delta = float(difference.norm(p=1 if authors else 2, dim=1).mean())
    return _log(delta, "the change of the features") + 0.5 * math.fsum(
        _log(variance, "the variance before a batch normalisation") for variance in variances
    )


def _features_and_variances(module: nn.Module, images: Tensor, correction: int) -> tuple[Tensor, list[float]]:
    """The features, and of what each batch normalisation is given the mean over channels of the variance."""
    variances: list[Tensor] = []

    def saw_input(_: nn.Module, args: tuple[Any, ...]) -> None:
        values: Tensor = args[0]
        axes = [axis for axis in range(values.dim()) if axis != 1]
        size = values.numel() // values.shape[1]
        # twenty times faster than Tensor.var on a CPU
        variances.append((values - values.mean(axes, keepdim=True)).square_().mean() * (size / (size - correction)))

    with preserved(module) as hooks:
        hooks += [p.register_forward_pre_hook(saw_input) for p in module.modules() if isinstance(p, _BatchNorm)]
        features = pooled_features(module, images)  # the first layer may work in place
    return features, [float(variance) for variance in variances]


@torch.no_grad()
def draw_gaussian_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Weights of convolutions and linear layers from N(0, 1), biases 0, batch normalisations 1 and 0: in place.

    A weight that is a constant (a buffer) stays what it is.
    """
    for part in module.modules():
        if isinstance(part, _ConvNd | nn.Linear) and isinstance(part.weight, nn.Parameter):
            part.weight.copy_(normal_like(part.weight, generator))
        elif isinstance(part, _BatchNorm) and part.weight is not None:
            part.weight.fill_(1)
        else:
            continue
        if part.bias is not None:
            part.bias.zero_()


def _log(value: float, what: str) -> float:
    if not 0 < value < math.inf:  # also true of NaN
        raise DegenerateNetworkError(f"{what} is {value}: the network is dead, or overflows")
    return math.log(value)
