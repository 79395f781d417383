"""A child of `morph` with its parent's weights, any number of LEMONADE's steps away.

The layers of both are aligned stage by stage, then one walk from the image to the classifier carries a `View`: how the
child's tensor stands for the parent's at the same place. So all steps are made at once, and it shows what is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hwnas.space import Arch
from hwnas.spaces.morph import MorphSpace
from hwnas.spaces.morph_blocks import CONCAT, CONVEX, NONE, MorphBlock
from hwnas.train.morphisms.alignment import Pair, aligned
from hwnas.train.morphisms.insert import set_dirac, set_neutral
from hwnas.train.morphisms.layers import Weights, as_layer_alone, inner_of, weights_of, write_layer
from hwnas.train.morphisms.views import (
    View,
    behind,
    beside,
    chosen,
    identity_view,
    ignoring,
    resized,
    selection,
)

_LARGEST_KERNEL = 7  # of what stands for removed layers; more is cut when it is read anyway


@dataclass(frozen=True)
class _State:
    """Where the walk is: the view, and means and variances of the child's and the parent's tensor, per channel."""

    view: View
    mean: Tensor
    var: Tensor
    parent_mean: Tensor
    parent_var: Tensor


def inherit_morph(
    space: MorphSpace, parent_arch: Arch, parent: nn.Module, child_arch: Arch, child: nn.Module, rng: torch.Generator
) -> tuple[bool, list[tuple[str, str]]]:
    """Give the fresh network `child` the weights of `parent`.

    Whether it computes exactly what the parent does, and the pairs of module names that are one layer of both.
    """
    pairs = [("stem", "stem"), ("head", "head")]
    state = _stem(parent.get_submodule("stem"), child.get_submodule("stem"), rng)
    parents, children = (dict(_stages(space, arch)) for arch in (parent_arch, child_arch))
    for stage in range(space.stages):
        if stage:
            state = replace(state, view=state.view.pooled())
        names, blocks = zip(*parents[stage], strict=True)
        child_names, child_blocks = zip(*children[stage], strict=True)
        for pair in aligned(blocks, child_blocks):
            old = None if pair.parent is None else weights_of(parent.get_submodule(names[pair.parent]))
            if pair.child is None:
                assert old is not None
                state = _removed(old, state)
                continue
            module = child.get_submodule(child_names[pair.child])
            if old is None:
                state = _inserted(child_blocks[pair.child], module, state, rng)
            else:
                state = _changed(old, child_blocks[pair.child], module, state, rng)
                pairs.append((names[pair.parent], child_names[pair.child]))  # type: ignore[index]
    _head(parent.get_submodule("head.classifier"), child.get_submodule("head.classifier"), state.view.pooled())
    return state.view.exact, pairs


def described(space: MorphSpace, parent_arch: Arch, child_arch: Arch) -> str:
    """The steps from one architecture to the other, as a reader would say them."""
    parents, children = (dict(_stages(space, arch)) for arch in (parent_arch, child_arch))
    widths = [space.config["widths"][arch[space.stem_slot]] for arch in (parent_arch, child_arch)]
    found = [f"stem width {widths[0]} -> {widths[1]}"] if widths[0] != widths[1] else []
    for stage in range(space.stages):
        old, new = ([block for _, block in layers[stage]] for layers in (parents, children))
        for pair in aligned(old, new):
            found += _said(stage, pair, old, new)
    return "; ".join(found) or "the same architecture"


def _said(stage: int, pair: Pair, parents: list[MorphBlock], children: list[MorphBlock]) -> Iterator[str]:
    if pair.child is None:
        yield f"stage {stage}: layer {pair.parent} removed"
    elif pair.parent is None:
        yield f"stage {stage}: layer {pair.child} inserted"
    else:
        old, new = parents[pair.parent], children[pair.child]
        for what, before, after in (
            ("width", old.out_channels, new.out_channels),
            ("kernel", old.kernel, new.kernel),
            ("convolution", *("separable" if block.separable else "plain" for block in (old, new))),
            ("skip", old.skip, new.skip),
        ):
            if before != after:
                yield f"stage {stage}: layer {pair.child} {what} {before} -> {after}"


def _stages(space: MorphSpace, arch: Arch) -> Iterator[tuple[int, list[tuple[str, MorphBlock]]]]:
    placed = [(position.name, block) for position, block in space.placed_blocks(arch) if isinstance(block, MorphBlock)]
    for stage in range(space.stages):
        yield stage, [(name, block) for name, block in placed if name.startswith(f"stage{stage}_")]


def _stem(parent: nn.Module, child: nn.Module, rng: torch.Generator) -> _State:
    old = weights_of(parent)
    nothing = torch.zeros(old.weight.shape[1], dtype=torch.float64)
    mean, var = old.moments(nothing, nothing)
    source = chosen(old.norms, weights_of(child).norm.count, True, rng)
    write_layer(inner_of(child), old, source, identity_view(old.weight.shape[1]))
    return _State(selection(source, old.norm.count, rng, mean), *weights_of(child).moments(nothing, nothing), mean, var)


def _removed(old: Weights, state: _State) -> _State:
    view = behind(old.linear(), state.view)
    if view.kernel.shape[-1] > _LARGEST_KERNEL:
        view = replace(view, kernel=resized(view.kernel, _LARGEST_KERNEL))
    mean, var = old.moments(state.parent_mean, state.parent_var)
    return replace(state, view=view, parent_mean=mean, parent_var=var)


def _inserted(block: MorphBlock, module: nn.Module, state: _State, rng: torch.Generator) -> _State:
    """A layer that is the identity, wider if need be; one that concatenates hands its input on as it is."""
    if block.skip == CONCAT:
        return _with_moments(module, replace(state, view=ignoring(state.view, block.filters, first=True)))
    second = state.mean**2 + state.var
    source = chosen(second, block.filters, True, rng)
    _write_identity(inner_of(module), source, state)
    _set_mix(module, 0.0)
    inner = selection(source, len(second), rng, state.mean)
    return _with_moments(module, replace(state, view=behind(state.view, inner)))


@torch.no_grad()
def _write_identity(inner: nn.Sequential, source: Tensor, state: _State) -> None:
    for part in inner:
        if isinstance(part, nn.Conv2d) and part.groups > 1:
            set_dirac(part)
        elif isinstance(part, nn.Conv2d):
            nn.init.zeros_(part.weight)
            middle = part.kernel_size[0] // 2
            part.weight[torch.arange(len(source)), source, middle, middle] = 1
        elif isinstance(part, nn.BatchNorm2d):
            set_neutral(part, state.mean[source], state.var[source])


def _changed(old: Weights, block: MorphBlock, module: nn.Module, state: _State, rng: torch.Generator) -> _State:
    """A layer of both."""
    inner, view = inner_of(module), state.view
    mean, var = old.moments(state.parent_mean, state.parent_var)
    new = replace(state, parent_mean=mean, parent_var=var)
    own_mean, _ = replace(old, skip=NONE).moments(state.parent_mean, state.parent_var)
    if old.skip == CONVEX and block.skip == CONVEX:  # the filters must match the channels that they are mixed with
        exact = write_layer(inner, old, view.source, view)
        _set_mix(module, old.mix)
        tied = selection(view.source, len(mean), rng, mean)
        return _with_moments(module, replace(new, view=_exact_if(tied, exact and view.exact)))
    if block.skip == CONCAT and old.skip != NONE:
        source = chosen(old.norms, block.filters, True, rng)
        exact = write_layer(inner, old, source, view)
        own = _exact_if(selection(source, len(own_mean), rng, own_mean), exact and view.exact)
        both = beside(own, view)
        if old.skip == CONVEX:
            both = _mixed(both, len(own_mean), old.mix)
        return _with_moments(module, replace(new, view=both))
    alone, exact = as_layer_alone(old, block.separable, state.parent_mean, state.parent_var)
    source = _filters(alone, old.norm.count, block.filters, rng)
    exact = write_layer(inner, alone, source, view) and exact
    _set_mix(module, 0.0)
    # a concatenated input that a separable layer cannot hand on has rows of zeros, and its mean
    made = _exact_if(selection(source, len(mean), rng, mean), exact and view.exact)
    made = ignoring(made, view.kernel.shape[1]) if block.skip == CONCAT else made
    return _with_moments(module, replace(new, view=made))


def _filters(layer: Weights, own: int, count: int, rng: torch.Generator) -> Tensor:
    """Which filters a child keeps: the largest of the parent's `own`, then those that stand for its skip."""
    if own < count < layer.norm.count:
        return torch.arange(count)
    return chosen(layer.norms[:own] if count <= own else layer.norms, count, True, rng)


def _mixed(both: View, channels: int, mix: float) -> View:
    """The sum of a layer and its input, out of the view of both of them concatenated."""
    own, entering = both.kernel[:channels], both.kernel[channels:]
    kernel = (1 - mix) * own + mix * entering
    unknown = torch.full_like(both.source, -1)
    source = unknown if mix else torch.where(both.source < channels, both.source, unknown)
    offset = (1 - mix) * both.offset[:channels] + mix * both.offset[channels:]
    return View(kernel, source, offset, both.exact)


def _exact_if(view: View, exact: bool) -> View:
    return replace(view, exact=view.exact and exact)


def _with_moments(module: nn.Module, state: _State) -> _State:
    mean, var = weights_of(module).moments(state.mean, state.var)
    return replace(state, mean=mean, var=var)


@torch.no_grad()
def _set_mix(module: nn.Module, mix: float) -> None:
    parameter = getattr(module, "mix", None)
    if isinstance(parameter, nn.Parameter):
        parameter.fill_(mix)


@torch.no_grad()
def _head(old: nn.Module, new: nn.Module, view: View) -> None:
    assert isinstance(old, nn.Linear)
    assert isinstance(new, nn.Linear)
    weight = old.weight.cpu().double()
    new.weight.copy_(weight @ view.kernel[:, :, 0, 0])
    new.bias.copy_(old.bias.cpu().double() + weight @ view.offset)
