"""The layers of `morph` as numbers, and a child's layer written from its parent's.

A skip that goes in or out is folded into the numbers first (`as_layer_alone`), so that what is written is always a
convolution with batch normalisation, some filters of which are the parent's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hwnas.spaces.morph_blocks import CONCAT, CONVEX, NONE, ConcatSkip, ConvexSkip
from hwnas.train.morphisms.separable import to_plain, to_separable
from hwnas.train.morphisms.views import View, beside, composed, identity_view, is_same, rectified, resized

_EPS = 1e-5  # of torch's batch normalisation
_NORM_VALUES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Norm:
    """Affine parameters and statistics of a batch normalisation, (channels,) float64 each."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor

    @property
    def scale(self) -> Tensor:
        """(channels,) by which it multiplies."""
        return self.gamma / torch.sqrt(self.var + _EPS)

    @property
    def count(self) -> int:
        """How many channels it has."""
        return len(self.gamma)

    def rectified(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and slope of the ReLU behind it, see `views.rectified`."""
        return rectified(self.beta, self.gamma)


def neutral(mean: Tensor, var: Tensor) -> Norm:
    """A batch normalisation that undoes itself, with these statistics."""
    # the statistics as they will be stored, so that what undoes them is rounded once
    mean, var = mean.float().double(), var.float().double()
    return Norm(torch.sqrt(var + _EPS), mean, mean, var)


@dataclass(frozen=True)
class Weights:
    """A layer's numbers in float64: `weight` (filters, in, k, k), or pointwise behind `depthwise` (in, 1, k, k);
    `norm`, the batch normalisation; `skip`, and `mix` of a convex one."""

    weight: Tensor
    depthwise: Tensor | None
    norm: Norm
    skip: str = NONE
    mix: float = 0.0

    @property
    def plain(self) -> Tensor:
        """(filters, in, k, k): the convolution as one."""
        return self.weight if self.depthwise is None else to_plain(self.depthwise, self.weight)

    @property
    def norms(self) -> Tensor:
        """(filters,) L1 norms."""
        return self.plain.abs().sum((1, 2, 3))

    def moments(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of what leaves the layer, given those of what enters (in,)."""
        own_mean, own_var, _ = self.norm.rectified()
        if self.skip == CONCAT:
            return torch.cat([own_mean, mean]), torch.cat([own_var, var])
        if self.skip == CONVEX:
            mix = min(max(self.mix, 0.0), 1.0)
            return (1 - mix) * own_mean + mix * mean, (1 - mix) ** 2 * own_var + mix**2 * var
        return own_mean, own_var

    def linear(self) -> View:
        """The output of the layer, skip included, as a linear view of its input (the line closest to its ReLU).

        The mean of the output is kept for an input as in training: the running mean is what the convolution then gives.
        """
        mean, _, slope = self.norm.rectified()
        scale = slope * self.norm.scale
        kernel = self.plain * scale[:, None, None, None]
        filters, entering = kernel.shape[:2]
        source = torch.arange(entering) if filters == entering else torch.full((entering,), -1)
        view = View(kernel, source, mean - scale * self.norm.mean, False)
        whole = identity_view(entering)
        if self.skip == CONCAT:
            both = beside(view, whole)
            joined = both.kernel[:, :entering] + both.kernel[:, entering:]  # both read the same tensor
            return View(joined, filters + torch.arange(entering), both.offset, False)
        if self.skip == CONVEX:
            mixed = (1 - self.mix) * kernel + self.mix * resized(whole.kernel, kernel.shape[-1])
            return View(mixed, source, (1 - self.mix) * view.offset, False)
        return view


def inner_of(module: nn.Module) -> nn.Sequential:
    """The convolution with what belongs to it, of the module of a MorphBlock or the stem."""
    inner = module.layer if isinstance(module, (ConvexSkip, ConcatSkip)) else module
    assert isinstance(inner, nn.Sequential)
    return inner


def weights_of(module: nn.Module) -> Weights:
    """The numbers of the module of a MorphBlock or the stem."""
    values = {key: value.detach().cpu().double() for key, value in inner_of(module).state_dict().items()}
    skip = CONVEX if isinstance(module, ConvexSkip) else CONCAT if isinstance(module, ConcatSkip) else NONE
    mix = float(module.mix.detach()) if isinstance(module, ConvexSkip) else 0.0
    norm = Norm(*(values[f"bn.{name}"] for name in _NORM_VALUES))
    return Weights(values["conv.weight"], values.get("depthwise.weight"), norm, skip, mix)


def as_layer_alone(parent: Weights, separable: bool, mean: Tensor, var: Tensor) -> tuple[Weights, bool]:
    """The parent's layer with its skip folded into the convolution, and whether that is exact.

    `mean` and `var` (in,) of what enters. A concatenated input becomes filters of identity, exact behind a ReLU; not
    where the child is `separable`, whose depthwise kernels belong to all filters. A convex skip is scaled and, in a
    plain convolution, added in front of the ReLU: exact where the layer's own ReLU is open.
    """
    if parent.skip == CONCAT and not separable:
        entering, size = parent.plain.shape[1:3]
        passing = resized(torch.eye(entering, dtype=torch.float64)[:, :, None, None], size)
        own, other = _vectors(parent.norm), _vectors(neutral(mean, var))
        norm = Norm(*(torch.cat(pair) for pair in zip(own, other, strict=True)))
        return Weights(torch.cat([parent.plain, passing]), None, norm), True
    if parent.skip == CONVEX and parent.mix != 0:
        rest = max(1 - parent.mix, 0.0)
        norm = replace(parent.norm, gamma=rest * parent.norm.gamma, beta=rest * parent.norm.beta)
        alone, scale = replace(parent, norm=norm, skip=NONE, mix=0.0), norm.scale
        if separable or bool((scale.abs() < 1e-3).any()):
            return alone, False
        plain = alone.plain
        middle = resized(torch.eye(len(scale), dtype=torch.float64)[:, :, None, None], plain.shape[-1])
        added = parent.mix / scale
        weight = plain + middle * added[:, None, None, None]
        norm = replace(norm, beta=norm.beta + parent.mix * mean, mean=norm.mean + added * mean)
        return Weights(weight, None, norm), False
    return replace(parent, skip=NONE, mix=0.0), parent.skip != CONCAT


def _vectors(norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return norm.gamma, norm.beta, norm.mean, norm.var


@torch.no_grad()
def write_layer(inner: nn.Sequential, parent: Weights, source: Tensor, view: View) -> bool:
    """Give the filters of a child's layer the parent's numbers, for an input seen through `view`; whether exactly.

    `source` (filters,): which filter of the parent; -1 leaves the fresh one.
    """
    values = dict(inner.state_dict())
    conv, size = values["conv.weight"], values.get("depthwise.weight", values["conv.weight"]).shape[-1]
    known = source >= 0
    rows = source[known]
    if "depthwise.weight" in values and parent.depthwise is not None and view.selects:
        read = view.source >= 0
        kernels = parent.depthwise[view.source[read]]
        values["depthwise.weight"][read] = resized(kernels, size).float()
        columns = torch.einsum("oc,cihw->oihw", parent.weight[:, :, 0, 0], view.kernel)
        conv[known] = columns[rows].float()
        exact = is_same(resized(kernels, size), kernels)
    else:
        weight = composed(parent.plain, view.kernel)
        fitted = resized(weight, size)
        exact = is_same(fitted, weight)
        if "depthwise.weight" in values:
            depthwise, pointwise = to_separable(fitted)
            exact = exact and is_same(to_plain(depthwise, pointwise), fitted)
            values["depthwise.weight"].copy_(depthwise)
            fitted = pointwise
        conv[known] = fitted[rows].float()
    shift = parent.plain.sum((2, 3)) @ view.offset
    norm = replace(parent.norm, mean=parent.norm.mean - shift)
    for name, value in zip(_NORM_VALUES, _vectors(norm), strict=True):
        values[f"bn.{name}"][known] = value[rows].float()
    return exact
