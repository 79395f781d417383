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


@dataclass(frozen=True)
class Weights:
    """A layer's numbers in float64: `weight` (filters, in, k, k), or pointwise behind `depthwise` (in, 1, k, k);
    `gamma`, `beta`, `mean`, `var` (filters,) of batch normalisation; `skip`, and `mix` of a convex one."""

    weight: Tensor
    depthwise: Tensor | None
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    skip: str
    mix: float

    @property
    def plain(self) -> Tensor:
        """(filters, in, k, k): the convolution as one."""
        return self.weight if self.depthwise is None else to_plain(self.depthwise, self.weight)

    @property
    def scale(self) -> Tensor:
        """(filters,) by which batch normalisation multiplies."""
        return self.gamma / torch.sqrt(self.var + _EPS)

    @property
    def norms(self) -> Tensor:
        """(filters,) L1 norms."""
        return self.plain.abs().sum((1, 2, 3))

    def moments(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of what leaves the layer, given those of what enters (in,)."""
        own_mean, own_var, _ = rectified(self.beta, self.gamma)
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
        mean, _, slope = rectified(self.beta, self.gamma)
        kernel = self.plain * (slope * self.scale)[:, None, None, None]
        filters, entering = kernel.shape[:2]
        source = torch.arange(entering) if filters == entering else torch.full((entering,), -1)
        view = View(kernel, source, mean - slope * self.scale * self.mean, False)
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
    mix = float(module.mix) if isinstance(module, ConvexSkip) else 0.0
    norm = [values[f"bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var")]
    return Weights(values["conv.weight"], values.get("depthwise.weight"), *norm, skip, mix)


def neutral(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gamma, beta, mean and var of a batch normalisation that undoes itself with these statistics."""
    # the statistics as they will be stored, so that what undoes them is rounded once
    mean, var = mean.float().double(), var.float().double()
    return torch.sqrt(var + _EPS), mean, mean, var


def as_layer_alone(parent: Weights, separable: bool, mean: Tensor, var: Tensor) -> tuple[Weights, bool]:
    """The parent's layer with its skip folded into the convolution, and whether that is exact.

    `mean` and `var` (in,) of what enters. A concatenated input becomes filters of identity, exact behind a ReLU; not
    where the child is `separable`, whose depthwise kernels belong to all filters. A convex skip is scaled and, in a
    plain convolution, added in front of the ReLU: exact where the layer's own ReLU is open.
    """
    if parent.skip == CONCAT and not separable:
        filters, entering, size, _ = parent.plain.shape
        passing = resized(torch.eye(entering, dtype=torch.float64)[:, :, None, None], size)
        norm = [torch.cat(pair) for pair in zip(_norm(parent), neutral(mean, var), strict=True)]
        return Weights(torch.cat([parent.plain, passing]), None, *norm, NONE, 0.0), True
    if parent.skip == CONVEX and parent.mix != 0:
        rest = max(1 - parent.mix, 0.0)
        alone = replace(parent, gamma=rest * parent.gamma, beta=rest * parent.beta, skip=NONE, mix=0.0)
        scale = alone.scale
        if separable or bool((scale.abs() < 1e-3).any()):
            return alone, False
        plain = alone.plain
        middle = resized(torch.eye(len(scale), dtype=torch.float64)[:, :, None, None], plain.shape[-1])
        added = parent.mix / scale
        return replace(
            alone,
            weight=plain + middle * added[:, None, None, None],
            depthwise=None,
            beta=alone.beta + parent.mix * mean,
            mean=alone.mean + added * mean,
        ), False
    return replace(parent, skip=NONE, mix=0.0), parent.skip != CONCAT


def _norm(layer: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return layer.gamma, layer.beta, layer.mean, layer.var


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
    for name, value in zip(("weight", "bias", "running_mean", "running_var"),
                           (parent.gamma, parent.beta, parent.mean - shift, parent.var), strict=True):  # fmt: skip
        values[f"bn.{name}"][known] = value[rows].float()
    return exact
