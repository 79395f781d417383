"""What a network answers in evaluation mode: whether it fits a data set, and how often it is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hwnas.errors import DataError
from hwnas.train.data import ImageData
from hwnas.train.preprocess import normalise


def evaluate(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    batch_size: int | None = None,
) -> float:
    """Accuracy in percent on (n, channels, height, width) uint8 images with (n,) labels, in float32.

    Computed where the network is, in evaluation mode; its mode is left as found. `batch_size`: None takes 64 on a CPU,
    whose caches hold no more, and 256 elsewhere.
    """
    device = next(module.parameters()).device
    batch_size = batch_size or (64 if device.type == "cpu" else 256)
    was_training = module.training
    module.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    try:
        with torch.inference_mode():
            for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
                pixels = images.to(device).contiguous(memory_format=torch.channels_last)
                inputs = normalise(pixels, mean, std, size).contiguous(memory_format=torch.channels_last)
                correct += (module(inputs).argmax(1) == labels.to(device)).sum()
    finally:
        module.train(was_training)
    return 100.0 * int(correct) / len(x)


def check_fits(module: nn.Module, data: ImageData, size: int) -> None:
    """Raise DataError unless the network turns images of this data set into one logit per class."""
    device = next(module.parameters()).device
    shape = (2, data.channels, size, size)
    was_training = module.training
    try:
        with torch.inference_mode():
            logits = module.eval()(torch.zeros(shape, device=device))
    except RuntimeError as error:
        raise DataError(f"the network cannot read a batch of {data.name}, shape {shape}: {error}") from error
    finally:
        module.train(was_training)
    if logits.shape != (2, data.num_classes):
        raise DataError(
            f"the network turns a batch of {data.name} into shape {tuple(logits.shape)}, expected "
            f"{(2, data.num_classes)}: build it with num_classes={data.num_classes}"
        )
