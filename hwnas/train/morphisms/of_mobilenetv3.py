"""A child of `mobilenetv3` with its parent's weights: kernels, expansions, depth, widths and resolution.

Larger kernels have zeros around the old ones (Once-for-All, arXiv 1908.09791, nests them likewise), new channels have
zeros in whatever reads them, squeeze-excite included, and a new layer is a residual block whose last batch
normalisation begins at zero (as in Goyal et al. 2017, arXiv 1706.02677, section 5.1). Smaller kernels gather the outer
taps at the border (`views.resized`), fewer channels are those with the largest L1 norms; what is gone goes on as its
mean, as batch normalisation tells it. Expansion 1 has no expanding layer, so a step from or to it loses what an
activation would change; so does a width with which a layer gains or loses its residual connection.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from hwnas.blocks import MBConv
from hwnas.space import Arch
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.train.morphisms.views import View, chosen, composed, expected, identity_view, is_same, resized, selection


def inherit_mobilenetv3(
    space: MobileNetV3Space,
    parent_arch: Arch,
    parent: nn.Module,
    child_arch: Arch,
    child: nn.Module,
    rng: torch.Generator,
) -> bool:
    """Give the fresh network `child` the weights of `parent`; whether it computes exactly what the parent does."""
    old = {position.name: parent.get_submodule(position.name) for position, _ in space.placed_blocks(parent_arch)}
    new = {position.name: child.get_submodule(position.name) for position, _ in space.placed_blocks(child_arch)}
    view = identity_view(space.input_shape(child_arch)[0])
    exact = parent_arch[0] == child_arch[0]  # at another resolution there is no parent to agree with
    for position in space.positions:
        before, after = old.get(position.name), new.get(position.name)
        if isinstance(after, MBConv):
            if before is None:
                _silence(after)
            else:
                assert isinstance(before, MBConv)
                view = _bottleneck(before, after, view, rng)
        elif position.name == "head" and before is not None and after is not None:
            view = _head(before, after, view, rng)
        elif before is not None and after is not None:
            source = _chosen(before, after, rng)
            view = _conv_bn(before, after, source, view, rng)
        elif before is not None:
            view = _dropped(before, view)
    return view.exact and exact


def _chosen(before: nn.Module, after: nn.Module, rng: torch.Generator) -> Tensor:
    """The filters of the parent that a child's convolution with batch normalisation has; new ones are fresh (-1)."""
    weight = _value(before, "conv.weight")
    return chosen(weight.abs().sum((1, 2, 3)), len(after.get_parameter("conv.weight")), False, rng)


@torch.no_grad()
def _conv_bn(before: nn.Module, after: nn.Module, source: Tensor, view: View, rng: torch.Generator) -> View:
    """A convolution without groups, with the parent's filters `source`; the view of what it gives."""
    known, rows = source >= 0, source[source >= 0]
    weight = _value(before, "conv.weight")
    child_weight = after.get_parameter("conv.weight")
    child_weight[known] = composed(weight, view.kernel)[rows].float()
    shift = weight.sum((2, 3)) @ view.offset
    _batch_norm(before, after, source, shift)
    made = selection(source, len(weight), rng, _mean_of(before))
    return replace(made, exact=made.exact and view.exact)


def _mean_of(layer: nn.Module) -> Tensor:
    """(channels,) what leaves a convolution with batch normalisation and perhaps an activation, on average."""
    mean, std = _value(layer, "bn.bias"), _value(layer, "bn.weight")
    activation = dict(layer.named_children()).get("activation")
    return mean if activation is None else expected(activation, mean, std)


def _batch_norm(before: nn.Module, after: nn.Module, source: Tensor, shift: Tensor | None = None) -> None:
    known, rows = source >= 0, source[source >= 0]
    values = after.state_dict()
    for name in ("weight", "bias", "running_mean", "running_var"):
        old = _value(before, f"bn.{name}")
        if name == "running_mean" and shift is not None:
            old = old - shift
        values[f"bn.{name}"][known] = old[rows].float()


def _bottleneck(before: MBConv, after: MBConv, view: View, rng: torch.Generator) -> View:
    old, new = before.layers, after.layers
    mid, exact = _expanded(old, new, view, rng)
    depthwise, child_depthwise = _value(old, "depthwise.conv.weight"), new.get_parameter("depthwise.conv.weight")
    fitted = resized(depthwise, child_depthwise.shape[-1])
    exact = is_same(fitted, depthwise) and exact
    known = mid.source >= 0
    child_depthwise[known] = fitted[mid.source[known]].float()
    _batch_norm(old.get_submodule("depthwise"), new.get_submodule("depthwise"), mid.source)
    mean = _mean_of(old.get_submodule("depthwise"))
    if "se.gate.reduce.weight" in dict(new.named_parameters()):
        gate = old.get_submodule("se.gate")
        gated = _gate(gate, mean) * mean
        exact = _squeeze_excite(gate, new.get_submodule("se.gate"), _missing(mid, mean), rng) and exact
        mean = gated
    project, child_project = old.get_submodule("project"), new.get_submodule("project")
    tied = before.residual and after.residual
    source = view.source if tied else _chosen(project, child_project, rng)
    made = _conv_bn(project, child_project, source, _missing(mid, mean), rng)
    if tied:
        made = replace(view, offset=torch.where(view.kernel.flatten(1).any(1), view.offset,
                                                view.offset + _value(project, "bn.bias")))  # fmt: skip
    return replace(made, exact=view.exact and mid.exact and exact and before.residual == after.residual and made.exact)


def _missing(view: View, mean: Tensor) -> View:
    """The view with the `mean` (parent,) of the channels that the child does not have."""
    gone = ~view.kernel.flatten(1).any(1)
    return replace(view, offset=torch.where(gone, mean, torch.zeros_like(mean)))


def _gate(gate: nn.Module, mean: Tensor) -> Tensor:
    """(channels,) by which squeeze-excite multiplies an image of these means."""
    squeezed = _value(gate, "reduce.weight")[:, :, 0, 0] @ mean + _value(gate, "reduce.bias")
    opened = _value(gate, "expand.weight")[:, :, 0, 0] @ squeezed.relu() + _value(gate, "expand.bias")
    return nn.functional.hardsigmoid(opened)


def _expanded(old: nn.Module, new: nn.Module, view: View, rng: torch.Generator) -> tuple[View, bool]:
    """The view of what the depthwise convolution reads, and whether it is exact."""
    parent_has, child_has = (hasattr(layers, "expand") for layers in (old, new))
    if parent_has and child_has:
        expand, child_expand = old.get_submodule("expand"), new.get_submodule("expand")
        return _conv_bn(expand, child_expand, _chosen(expand, child_expand, rng), view, rng), True
    if not parent_has and not child_has:
        return view, True
    # with and without an expanding layer: channels by their norms, and what can be no copy stays fresh
    norms = _value(old, "depthwise.conv.weight").abs().sum((1, 2, 3))
    count = len(new.get_parameter("depthwise.conv.weight"))
    if not child_has:
        return selection(chosen(norms, count, False, rng), len(norms), rng), False
    source = view.source.new_full((count,), -1)
    shared = min(count, len(view.source))
    source[:shared] = view.source[:shared]
    weight = new.get_parameter("expand.conv.weight")
    weight[:shared] = torch.eye(len(view.source))[:shared, :, None, None]
    return selection(source, len(norms), rng), False


def _squeeze_excite(before: nn.Module, after: nn.Module, mid: View, rng: torch.Generator) -> bool:
    """New channels are not squeezed, new squeezed ones reach no gate; gates of new channels are fresh."""
    reduce, expand = _value(before, "reduce.weight"), _value(before, "expand.weight")
    values = after.state_dict()
    squeezed = chosen(reduce.abs().sum((1, 2, 3)), len(values["reduce.weight"]), False, rng)
    inner = selection(squeezed, len(reduce), rng)
    known, rows = squeezed >= 0, squeezed[squeezed >= 0]
    values["reduce.weight"][known] = composed(reduce, mid.kernel)[rows].float()
    shift = reduce.sum((2, 3)) @ mid.offset
    values["reduce.bias"][known] = (_value(before, "reduce.bias") + shift)[rows].float()
    known, rows = mid.source >= 0, mid.source[mid.source >= 0]
    values["expand.weight"][known] = composed(expand, inner.kernel)[rows].float()
    values["expand.bias"][known] = _value(before, "expand.bias")[rows].float()
    return inner.exact


def _silence(layer: MBConv) -> None:
    """A residual block that is the identity: its branch ends with zeros, whose scale learns first."""
    nn.init.zeros_(layer.layers.get_parameter("project.bn.weight"))
    nn.init.zeros_(layer.layers.get_parameter("project.bn.bias"))


def _dropped(before: nn.Module, view: View) -> View:
    """Without a residual block, all that stays of its branch is the mean."""
    assert isinstance(before, MBConv)
    return replace(view, offset=view.offset + _value(before.layers, "project.bn.bias"), exact=False)


def _head(before: nn.Module, after: nn.Module, view: View, rng: torch.Generator) -> View:
    hidden, classifier = _value(before, "hidden.weight"), _value(before, "classifier.weight")
    values = after.state_dict()
    source = chosen(hidden.abs().sum((1, 2, 3)), len(values["hidden.weight"]), False, rng)
    known, rows = source >= 0, source[source >= 0]
    values["hidden.weight"][known] = composed(hidden, view.kernel)[rows].float()
    inner = selection(source, len(hidden), rng)
    values["classifier.weight"].copy_(classifier @ inner.kernel[:, :, 0, 0])
    values["classifier.bias"].copy_(_value(before, "classifier.bias"))
    return replace(inner, exact=inner.exact and view.exact)


def _value(module: nn.Module, name: str) -> Tensor:
    value: Tensor = module.state_dict()[name]
    return value.detach().cpu().double()
