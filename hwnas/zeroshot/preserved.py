"""Watch and even change a module for a while, and leave it exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from hwnas.zeroshot import DegenerateNetworkError


@contextmanager
def preserved(module: nn.Module, *, weights: bool = False) -> Iterator[list[RemovableHandle]]:
    """Restore modes, buffers, requires_grad, gradients and the global random state at the end, error or not.

    Yields a list: hooks whose handles are put into it are removed. Weights are saved and restored only if `weights`,
    since most scores just read them. Inside, the global random state is a fixed one, so that a module that draws
    from it in its forward still gets the same score twice; scores themselves draw from their generator.
    """
    parameters = list(module.parameters())
    saved: list[Tensor] = [*module.buffers(), *(parameters if weights else [])]
    copies = [tensor.detach().clone() for tensor in saved]
    modes = [(part, part.training, getattr(part, "track_running_stats", None)) for part in module.modules()]
    gradients = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
    gpus = sorted({tensor.device.index for tensor in (*saved, *parameters) if tensor.is_cuda})
    hooks: list[RemovableHandle] = []
    with torch.random.fork_rng(devices=gpus):
        # torch.manual_seed would also touch the generators of GPUs that are not forked here
        torch.default_generator.manual_seed(0)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(0)
        for parameter in parameters:
            parameter.grad = None  # a backward pass must not add to the gradients of the user
        try:
            yield hooks
        finally:
            for hook in hooks:
                hook.remove()
            with torch.no_grad():
                for tensor, copy in zip(saved, copies, strict=True):
                    if not torch.equal(tensor, copy):  # a graph of autograd may still need the untouched ones
                        tensor.copy_(copy)
            for part, training, tracking in modes:
                part.training = training
                if tracking is not None:
                    part.track_running_stats = tracking
            for parameter, requires_grad, gradient in gradients:
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient


def use_batch_statistics(module: nn.Module) -> None:
    """Batch normalisation by the statistics of the batch, everything else (dropout, say) as in evaluation.

    An untrained network has no running statistics to speak of. The authors of the scores put the whole network into
    train mode, which is the same but for the noise of dropout and stochastic depth. Running statistics are not updated.
    """
    module.eval()
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.training, part.track_running_stats = True, False


def refuse_single_values(module: nn.Module) -> list[RemovableHandle]:
    """Hooks that raise DegenerateNetworkError where batch normalisation would have the statistics of a single value."""

    def check_input(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and inputs[0].numel() == inputs[0].shape[1]:
            raise DegenerateNetworkError("batch normalisation of a single value: give more or larger images")

    return [part.register_forward_pre_hook(check_input) for part in module.modules() if isinstance(part, _BatchNorm)]
