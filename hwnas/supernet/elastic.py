"""The supernet of a space: the weights of its largest blocks, of which every architecture's network is a part.

Any `SearchSpace` whose blocks follow `sharing.py` has one; nothing is written per space or per block. A subnet is built
of the same modules as `space.build` makes, with views of the supernet's weights as their parameters: so what is trained
through it is the supernet, and an extracted network computes the very same operations on copies.

Batch normalisations of a supernet have no running statistics: those of one subnet are wrong for all others. A subnet
normalises by its batch until `recalibrate` gives it statistics of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from hwnas.blocks import Block
from hwnas.errors import SpaceError
from hwnas.space import Arch, SearchSpace
from hwnas.supernet.recalibrate import normalisations, reset_statistics, without_statistics
from hwnas.supernet.sharing import Part, kernel_sizes, kind_of, largest_block, matrix_name, meta_module, parts_of


class Shared(nn.Module):
    """The weights of all blocks of one kind at one position: those of the largest, and the matrices between kernels."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__()
        blocks = list(blocks)
        self.block = largest_block(blocks)
        self.weights = self.block.module()
        for normalisation in normalisations(self.weights):
            without_statistics(normalisation)
        modules = [meta_module(block) for block in blocks]
        self._kernels = kernel_sizes([self.weights, *modules])
        for module in modules:
            parts_of(module, self.weights, self._kernels)  # raises where they are none
        self.matrices = nn.ParameterDict(
            {
                _flat(f"{name}.{matrix_name(large, small)}"): torch.eye(small**2)
                for name, sizes in self._kernels.items()
                for large, small in pairwise(sizes)
            }
        )
        self._whole = dict(self.weights.named_parameters())  # looked up hundreds of times a step
        self._constants = [name for name, _ in self.weights.named_buffers()]
        self._templates: dict[Block, tuple[nn.Module, dict[str, Part]]] = {}

    def part(self, block: Block) -> tuple[nn.Module, dict[str, Tensor]]:
        """A module of the block without values, and the values of its parameters and constants by name."""
        if block not in self._templates:
            module = meta_module(block)
            self._templates[block] = module, parts_of(module, self.weights, self._kernels)
        template, parts = self._templates[block]
        return template, {name: self._value(name, part) for name, part in parts.items()}

    def _value(self, name: str, part: Part) -> Tensor:
        steps = [matrix_name(large, small) for large, small in pairwise(part.kernels)]
        return part.of(self._whole[name], {step: self.matrices[_flat(f"{name}.{step}")] for step in steps})

    def constants(self) -> dict[str, Tensor]:
        """Buffers that are no statistics."""
        return {name: self.weights.get_buffer(name) for name in self._constants}


class Supernet(nn.Module):
    """All networks of a space in one set of weights, initialised by `seed`: what `forward` and `extract` are parts of.

    `is_chain`: whether networks are their blocks one after another. Raises SpaceError if the blocks at some position
    cannot share weights.
    """

    def __init__(self, space: SearchSpace, *, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self.shared = nn.ModuleDict()
        self._holders: dict[tuple[str, tuple[object, ...]], Shared] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for number, position in enumerate(space.positions):
                kinds: dict[tuple[object, ...], dict[Block, None]] = {}
                for _, block in space.position_blocks(number):
                    if block is not None:
                        kinds.setdefault(kind_of(block), {})[block] = None
                try:
                    holders = {kind: Shared(blocks) for kind, blocks in kinds.items()}
                except SpaceError as error:
                    raise SpaceError(
                        f"{space.name} has no supernet: at position {position.name!r} {error}; search it by training "
                        "networks, or share weights between fewer options"
                    ) from error
                self.shared[_flat(position.name)] = nn.ModuleList(holders.values())
                self._holders |= {(position.name, kind): holder for kind, holder in holders.items()}
        self.is_chain = _is_chain(space)

    def holders(self) -> list[list[Shared]]:
        """The shared weights by position of the space, one of each kind of block."""
        return [list(cast("Iterable[Shared]", kinds)) for kinds in self.shared.values()]

    def subnet(self, arch: Arch) -> nn.Module:
        """The network of an architecture with the supernet's weights as its own, in the supernet's mode.

        Its batch normalisations have no statistics. Gradients reach the supernet; made anew after every step of an
        optimiser, as transformed filters are computed here.
        """
        return self._network(arch, lambda value: value)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """(batch, channels, size, size) images -> (batch, classes) logits of the architecture's subnet."""
        logits: Tensor = self.subnet(arch)(x)
        return logits

    def extract(self, arch: Arch) -> nn.Module:
        """The network of an architecture with copies of its weights: `space.build(arch)`, but trained.

        Statistics of its batch normalisations are initial ones: call `recalibrate` before it is used.
        """
        network = self._network(arch, lambda value: nn.Parameter(value.detach().clone()))
        for normalisation in normalisations(network):
            reset_statistics(normalisation)
        return network

    def _network(self, arch: Arch, own: Callable[[Tensor], Tensor]) -> nn.Module:
        modules = {
            position.name: self._module(position.name, block, own) for position, block in self.space.placed_blocks(arch)
        }
        if self.is_chain:
            network: nn.Module = nn.Sequential()
            network._modules.update(modules)
        else:
            with torch.device("meta"):
                network = self.space.build(arch)
            for name, module in modules.items():
                network.set_submodule(name, module)
        network.training = self.training
        return network

    def _module(self, position: str, block: Block, own: Callable[[Tensor], Tensor]) -> nn.Module:
        template, values = self._holders[position, kind_of(block)].part(block)
        filling = {name: own(value) for name, value in values.items()}
        return _filled(template, "", filling, self._holders[position, kind_of(block)].constants(), self.training)


def _flat(name: str) -> str:
    """A dotted name as one that modules and parameters may be registered under."""
    return name.replace(".", "/")


def _is_chain(space: SearchSpace) -> bool:
    """Whether the space's networks are their blocks' modules one after another, and so can be put together as such."""
    arch = space.check([0] * len(space.slots))
    with torch.device("meta"):
        network = space.build(arch)
    return type(network) is nn.Sequential and list(network._modules) == [p.name for p, _ in space.placed_blocks(arch)]


def _filled(
    template: nn.Module, prefix: str, values: Mapping[str, Tensor], constants: Mapping[str, Tensor], training: bool
) -> nn.Module:
    """A copy of a module that holds no values, with these for its parameters and buffers; no statistics.

    Copied by hand: `copy.deepcopy` takes ten times as long, more than many a small subnet's forward.
    """
    module = template.__class__.__new__(template.__class__)
    module.__dict__.update(template.__dict__)
    module.training = training
    module.__dict__["_parameters"] = {
        name: None if parameter is None else values[prefix + name] for name, parameter in template._parameters.items()
    }
    module.__dict__["_buffers"] = {name: constants.get(prefix + name) for name in template._buffers}
    module.__dict__["_modules"] = {
        name: None if child is None else _filled(child, f"{prefix}{name}.", values, constants, training)
        for name, child in template._modules.items()
    }
    return module
