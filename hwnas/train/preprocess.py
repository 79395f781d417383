"""From stored images to what a network reads: the one preprocessing of training, evaluation and exported files.

To reproduce it elsewhere, per image of 8-bit pixels:

1. unless the image is size x size already, resize it to that (aspect ratio not kept) with the bilinear (triangle)
   filter, widened by the scale when shrinking (antialias), pixel centres at +0.5; weights in float32; round to the
   nearest integer, halves to even: again 8-bit pixels;
2. divide by 255, subtract the channel's mean, divide by the channel's standard deviation, in that order, in float32.

Rounding after the resize is what lets a whole data set be resized once and kept in 8 bits: the numbers are the same
whether an image is resized alone, in a batch, or beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_CHUNK = 1024  # images resized at a time: bounds the float copy


def resize(x: Tensor, size: int) -> Tensor:
    """(n, channels, height, width) uint8 -> (n, channels, size, size) uint8; the same tensor if it has that size.

    Always computed on the CPU, so that every device sees the same pixels; the result is on the device of `x`.
    """
    if x.shape[2:] == (size, size):
        return x
    resized = torch.empty(*x.shape[:2], size, size, dtype=torch.uint8)
    for start in range(0, len(x), _CHUNK):
        images = x[start : start + _CHUNK].cpu().float()
        images = interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        resized[start : start + _CHUNK] = images.round_().clamp_(0, 255).to(torch.uint8)
    return resized.to(x.device)


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float], size: int) -> Tensor:
    """(n, channels, height, width) uint8 -> (n, channels, size, size) float32, standardised; see the module's text.

    `mean` and `std`, one value per channel, are those of pixels in [0, 1].
    """
    pixels = resize(x, size).float().div_(255)
    statistics = torch.tensor([list(mean), list(std)], dtype=torch.float32)[:, :, None, None]
    # not to wait for a GPU in every batch; as large as an image, in its layout: broadcast over channels that are the
    # innermost axis, they take a CPU four times as long
    statistics = statistics.to(x.device, non_blocking=True)
    centre, scale = (torch.empty_like(pixels[:1]).copy_(values) for values in statistics)
    return pixels.sub_(centre).div_(scale)
