"""The gradient of the loss of one batch: one forward and one backward, which snip, grad_norm and fisher share.

The loss is the mean cross entropy. Batch normalisation uses the statistics of the batch, dropout is off. Layers are
Conv2d and Linear, as in the papers; a frozen weight counts like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hwnas.errors import DataError
from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.preserved import preserved, use_batch_statistics
from hwnas.zeroshot.probe import Probe


@dataclass(frozen=True)
class LossGradients:
    """Of each layer the weight with its gradient, and of each call of a layer how its output acts on the loss.

    weights, gradients: one tensor a layer, in equal shapes. responses: one (n, channels) a call of a layer, the sum
    over places of output x gradient of the output; fan_ins: how many weights a channel of that layer has.
    """

    weights: list[Tensor]
    gradients: list[Tensor]
    responses: list[Tensor]
    fan_ins: list[int]


def loss_gradients(probe: Probe) -> LossGradients:
    """One forward and backward of the batch. Raises DegenerateNetworkError if no gradient reaches any weight."""
    labels = probe.labels
    called: list[nn.Conv2d | nn.Linear] = []
    outputs: list[Tensor] = []

    def saw_output(layer: nn.Conv2d | nn.Linear, _: tuple[Any, ...], output: Tensor) -> Tensor:
        called.append(layer)
        outputs.append(output)
        return output.clone()  # what follows may work in place, as ReLU behind a convolution does in VGG

    with differentiable(probe.module) as (hooks, weights):
        hooks += [layer.register_forward_hook(saw_output) for layer in layers(probe.module)]
        found = gradients(mean_loss(probe.module, probe.images, labels), [*weights, *outputs])
    weight_gradients, output_gradients = found[: len(weights)], found[len(weights) :]
    if not any(bool(gradient.any()) for gradient in weight_gradients):
        raise DegenerateNetworkError("no gradient reaches any weight: the network is dead")
    responses = [_responses(*call) for call in zip(called, outputs, output_gradients, strict=True)]
    fan_ins = [layer.weight[0].numel() for layer in called]
    return LossGradients([weight.detach() for weight in weights], weight_gradients, responses, fan_ins)


def _responses(layer: nn.Conv2d | nn.Linear, output: Tensor, gradient: Tensor) -> Tensor:
    product = output.detach() * gradient
    if isinstance(layer, nn.Linear):
        product = product.movedim(-1, 1)
    return product.reshape(*product.shape[:2], -1).sum(2)


def layers(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Every Conv2d and Linear whose weight is a parameter (others hold a constant, or compute theirs)."""
    found = (part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear))
    return [layer for layer in found if isinstance(layer.weight, nn.Parameter)]


@contextmanager
def differentiable(module: nn.Module) -> Iterator[tuple[list[RemovableHandle], list[Tensor]]]:
    """The module as the scores differentiate it, restored afterwards; yields a list for hooks and its weights.

    Raises DegenerateNetworkError for a module without Conv2d and Linear.
    """
    with preserved(module) as hooks, torch.enable_grad():
        use_batch_statistics(module)
        weights: list[Tensor] = list(dict.fromkeys(layer.weight for layer in layers(module)))  # tied ones once
        if not weights:
            raise DegenerateNetworkError(f"{type(module).__name__} has no Conv2d and no Linear layer")
        for weight in weights:
            weight.requires_grad_(True)
        yield hooks, weights


def mean_loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of images (n, c, h, w) and labels (n,) int.

    Raises DataError on labels that do not fit, DegenerateNetworkError on one image or a network that does not classify.
    """
    if labels.shape != images.shape[:1]:
        raise DataError(f"{len(images)} images need labels of shape ({len(images)},), got {tuple(labels.shape)}")
    if len(images) < 2:
        raise DegenerateNetworkError("the statistics of a batch need at least two images")
    logits = module(images)
    if logits.dim() != 2:
        raise DegenerateNetworkError(f"logits have the shape (n, classes), this network gives {tuple(logits.shape)}")
    # checked here, since on a GPU the loss itself would end the whole process
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise DataError(f"labels {int(labels.min())} to {int(labels.max())} for a network of {logits.shape[1]} classes")
    return F.cross_entropy(logits, labels.long())


def gradients(
    value: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool | None = None
) -> list[Tensor]:
    """d value / d inputs by one backward pass, zeros where an input has no influence."""
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in inputs]
    return list(
        torch.autograd.grad(value, inputs, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True)
    )
