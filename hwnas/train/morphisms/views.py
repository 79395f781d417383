"""How the channels of a child's tensor stand for those of its parent's: what every morphism hands to what reads it.

    parent[c] = sum over i and taps of kernel[c, i] * child[i] + offset[c]

Widening: an old channel keeps its column, its copies share it (Net2Net, Chen, Goodfellow & Shlens, ICLR 2016,
arXiv 1511.05641, section 2.2), new filters have zeros (LEMONADE's type II). Pruning: the row of a channel that is gone
is zero, and `offset` is its mean. Removing a layer: the kernel is that layer, made linear. A reader multiplies its
weight by the kernel, so all of them, and any number of them in a row, are one rule. All tensors here are float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, pad


@dataclass(frozen=True)
class View:
    """`kernel` (parent, child, k, k), `offset` (parent,), `exact`: whether the equation above holds exactly.

    `source` (child,) int64: the parent's channel that each of the child's equals, or stands closest to; -1 for none.
    """

    kernel: Tensor
    source: Tensor
    offset: Tensor
    exact: bool = True

    @property
    def selects(self) -> bool:
        """Whether every channel of the child brings only the parent's channel that it equals, at the same pixel."""
        if self.kernel.shape[2:] != (1, 1):
            return False
        others = self.kernel[:, :, 0, 0].clone()
        known = self.source >= 0
        others[self.source[known], known.nonzero()[:, 0]] = 0
        return not bool(others.any())

    def pooled(self) -> View:
        """The same through pooling: what comes from other pixels is taken as coming from the same one."""
        return replace(self, kernel=self.kernel.sum((2, 3), keepdim=True))


def identity_view(channels: int) -> View:
    """The view of a tensor that is the parent's."""
    return selection(torch.arange(channels), channels)


def selection(
    source: Tensor, channels: int, generator: torch.Generator | None = None, mean: Tensor | None = None
) -> View:
    """The view of a tensor whose channel i is the parent's channel source[i], or a new one (-1).

    Copies of one channel share it in random parts (a third to two thirds of equal ones), so that they learn different
    things. `mean` (channels,) of the parent's tensor stands in for channels that have no copy.
    """
    kernel = torch.zeros(channels, len(source), 1, 1, dtype=torch.float64)
    known = (source >= 0).nonzero()[:, 0]
    parts = torch.ones(len(source), dtype=torch.float64)
    if generator is not None:
        parts = 1 + torch.rand(len(source), generator=generator, dtype=torch.float64)
    total = torch.zeros(channels, dtype=torch.float64).index_add_(0, source[known], parts[known])
    kernel[source[known], known, 0, 0] = parts[known] / total[source[known]]
    gone = total == 0
    offset = torch.zeros(channels, dtype=torch.float64)
    if mean is not None:
        offset[gone] = mean[gone]
    return View(kernel, source, offset, not bool(gone.any()))


def behind(outer: View, inner: View) -> View:
    """A view through a view: of what `outer` is seen on, `inner` tells how it is made of the child's tensor."""
    source = torch.where(inner.source >= 0, outer.source[inner.source.clamp(min=0)], inner.source)
    offset = outer.offset + outer.kernel.sum((2, 3)) @ inner.offset
    return View(composed(outer.kernel, inner.kernel), source, offset, outer.exact and inner.exact)


def beside(first: View, second: View) -> View:
    """Views of two tensors as one of both, concatenated."""
    size = max(first.kernel.shape[-1], second.kernel.shape[-1])
    kernels = [resized(view.kernel, size) for view in (first, second)]
    (rows, columns), (more_rows, more_columns) = (kernel.shape[:2] for kernel in kernels)
    kernel = kernels[0].new_zeros(rows + more_rows, columns + more_columns, size, size)
    kernel[:rows, :columns], kernel[rows:, columns:] = kernels
    source = torch.cat([first.source, torch.where(second.source >= 0, second.source + rows, second.source)])
    return View(kernel, source, torch.cat([first.offset, second.offset]), first.exact and second.exact)


def ignoring(view: View, extra: int, *, first: bool = False) -> View:
    """The view where the child's tensor has `extra` channels more, at its end (or its beginning), that say nothing."""
    zeros = view.kernel.new_zeros(len(view.kernel), extra, *view.kernel.shape[2:])
    unknown = torch.full((extra,), -1)
    kernels, sources = [view.kernel, zeros], [view.source, unknown]
    if first:
        kernels, sources = kernels[::-1], sources[::-1]
    return View(torch.cat(kernels, 1), torch.cat(sources), view.offset, view.exact)


def grown_source(channels: int, count: int, copies: bool, generator: torch.Generator) -> Tensor:
    """(count,) int64: all of a parent's channels, then copies of random ones (each as rarely as possible), or -1."""
    extra = count - channels
    if not copies:
        return torch.cat([torch.arange(channels), torch.full((extra,), -1)])
    rounds = [torch.randperm(channels, generator=generator) for _ in range(math.ceil(extra / channels))]
    return torch.cat([torch.arange(channels), *rounds])[:count]


def chosen(norms: Tensor, count: int, copies: bool, generator: torch.Generator) -> Tensor:
    """(count,) int64: the filters of a child, more or fewer than the parent's of these L1 `norms` (parent,)."""
    if count < len(norms):
        return largest(norms, count)
    return grown_source(len(norms), count, copies, generator)


def largest(norms: Tensor, count: int) -> Tensor:
    """(count,) int64: the channels with the largest norms, in their order (LEMONADE: L1 norms of the filters)."""
    return norms.argsort(descending=True, stable=True)[:count].sort().values


def composed(weight: Tensor, kernel: Tensor) -> Tensor:
    """(out, parent, a, a) after (parent, child, b, b) -> (out, child, a + b - 1, a + b - 1), one convolution.

    Exact inside of an image; at its border too if one of the kernels is 1x1.
    """
    if kernel.shape[2:] == (1, 1):
        return torch.einsum("ocxy,ci->oixy", weight, kernel[:, :, 0, 0])
    return conv_transpose2d(weight, kernel)


def resized(weight: Tensor, size: int) -> Tensor:
    """The weight of a convolution with another odd kernel size, in the last two axes.

    A larger one has zeros around it. In a smaller one, taps outside go to the nearest inside: neighbouring pixels are
    alike, and the sum of the taps, so the mean of what comes out, is kept; cutting them off is further from the parent.
    """
    margin = (size - weight.shape[-1]) // 2
    if margin >= 0:
        return pad(weight, (margin,) * 4)
    nearest = (torch.arange(weight.shape[-1]) + margin).clamp(0, size - 1)
    for axis in (-1, -2):
        shape = list(weight.shape)
        shape[axis] = size
        weight = weight.new_zeros(shape).index_add_(axis, nearest, weight)
    return weight


def is_same(weight: Tensor, other: Tensor) -> bool:
    """Whether two kernels of any odd sizes are the same up to the rounding of float64."""
    if not weight.numel():
        return True
    size = max(weight.shape[-1], other.shape[-1])
    difference = (resized(weight, size) - resized(other, size)).abs().max()
    return bool(difference <= 1e-12 * weight.abs().max().clamp(min=1e-30))


def expected(activation: nn.Module, mean: Tensor, std: Tensor) -> Tensor:
    """The mean of activation(z) for normal z, by Gauss-Hermite quadrature; as `rectified`, for any activation."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(32))
    values: Tensor = activation(mean[:, None] + std.abs()[:, None] * nodes)
    return (values @ weights) / weights.sum()


def rectified(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ReLU(z) for normal z: mean, variance, and how often z is above 0, the slope of its best linear likeness.

    After batch normalisation mean and standard deviation are its bias and its |weight|, so a network says roughly what
    its activations are without any data.
    """
    std = std.abs().clamp(min=1e-12)
    above = torch.special.ndtr(mean / std)
    density = torch.exp(-0.5 * (mean / std) ** 2) / math.sqrt(2 * math.pi)
    first = mean * above + std * density
    second = (mean**2 + std**2) * above + mean * std * density
    return first, (second - first**2).clamp(min=0), above
