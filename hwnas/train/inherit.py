"""A child architecture with its parent's weights: what LEMONADE's searches, and any that mutate networks, train from.

`inherit` takes any two architectures of a space. For `morph` and `mobilenetv3` the child computes exactly what its
parent does wherever a network morphism allows that (LEMONADE, arXiv 1804.09081, section 3; Net2Net, arXiv 1511.05641;
Once-for-All's nested kernels, arXiv 1908.09791), and is close to it elsewhere. For other spaces it takes over whatever
has the same name and shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hwnas.space import Arch, SearchSpace
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.morph import MorphSpace
from hwnas.train.morphisms.of_mobilenetv3 import inherit_mobilenetv3
from hwnas.train.morphisms.of_morph import described, inherit_morph


@dataclass(frozen=True)
class Inherited:
    """A child network, on the CPU, and what became of it.

    `exact`: in evaluation it computes what its parent does, up to rounding. `untouched`: the names of those parameters
    whose layers are the parent's as they were, to be frozen while the others learn from the parent (`distil.py`).
    `step`: the way from the parent in words.
    """

    module: nn.Module = field(repr=False)
    exact: bool
    untouched: tuple[str, ...]
    step: str


def inherit(
    space: SearchSpace, parent_arch: Arch, parent_module: nn.Module, child_arch: Arch, *, seed: int
) -> Inherited:
    """The network of `child_arch`, with the weights of `parent_module`, the (trained) network of `parent_arch`.

    The parent stays as it is; `seed` decides what is random in new weights. Raises SpaceError for architectures that
    are not of the space.
    """
    parent_arch, child_arch = space.check(parent_arch), space.check(child_arch)
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        child = space.build(child_arch)
        if isinstance(space, MorphSpace):
            exact, pairs = inherit_morph(space, parent_arch, parent_module, child_arch, child, rng)
            step = described(space, parent_arch, child_arch)
        else:
            if isinstance(space, MobileNetV3Space):
                exact = inherit_mobilenetv3(space, parent_arch, parent_module, child_arch, child, rng)
            else:
                exact = _copy_same(parent_module, child)
            pairs = [(position.name, position.name) for position, _ in space.placed_blocks(child_arch)]
            step = _changed_slots(space, parent_arch, child_arch)
        return Inherited(child, exact, _untouched(parent_module, child, pairs), step)


def _copy_same(parent: nn.Module, child: nn.Module) -> bool:
    """Copy values of the same name and shape; whether these are all there are, in networks of the same structure."""
    old, new = parent.state_dict(), child.state_dict()
    same = [key for key, value in new.items() if key in old and old[key].shape == value.shape]
    for key in same:
        new[key].copy_(old[key])
    return repr(parent) == repr(child) and len(same) == len(new) == len(old)


def _untouched(parent: nn.Module, child: nn.Module, pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    """The parameters of the child's modules all of whose values are those of the parent's module."""
    modules = dict(parent.named_modules())
    names: list[str] = []
    for old, new in pairs:
        if old not in modules:
            continue
        module = child.get_submodule(new)
        before, after = _values(modules[old]), _values(module)
        if before.keys() == after.keys() and all(
            before[key].shape == value.shape and torch.equal(before[key], value) for key, value in after.items()
        ):
            names += [f"{new}.{key}" for key, _ in module.named_parameters()]
    order = [name for name, _ in child.named_parameters()]
    return tuple(sorted(names, key=order.index))


def _values(module: nn.Module) -> dict[str, Tensor]:
    """All that a module computes with; how many batches it has seen is nothing of it."""
    return {key: value.cpu() for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}


def _changed_slots(space: SearchSpace, parent_arch: Arch, child_arch: Arch) -> str:
    before, after = space.describe(parent_arch), space.describe(child_arch)
    changes = [f"{name} {before[name]} -> {value}" for name, value in after.items() if before[name] != value]
    return "; ".join(changes) or "the same architecture"
