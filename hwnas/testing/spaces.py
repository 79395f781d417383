"""Conformance of a search space: everything that profiling, searching, training and export take for granted.

Call `check_space` from a test of a space of your own. Here: what follows from the definition (arguments, architectures,
blocks); what the built networks must keep is in `networks.py`.
"""

from __future__ import annotations

import json

import numpy as np

from hwnas.blocks import Block
from hwnas.errors import HwnasError
from hwnas.latency.index import BlockIndex
from hwnas.space import Arch, IntMatrix, SearchSpace, format_arch, parse_arch, rows_of, unique_archs
from hwnas.testing.networks import check_network, require

_TRIED = 64  # architectures on which `canonical` and `sample` are checked


def check_space(space: SearchSpace, *, archs: int = 8, seed: int = 0, removes_dead_work: bool = False) -> None:
    """Raise AssertionError, saying what to change, unless the space keeps the contract of SearchSpace.

    Networks of `archs` random architectures, and of the first and the last option of every slot, are built, run and
    compared with their graphs in ONNX Runtime. Set `removes_dead_work` for a space whose canonical form leaves out
    blocks that cannot reach the output; otherwise it must keep the blocks of every architecture.
    """
    rng = np.random.default_rng(seed)
    _check_names(space)
    _check_config(space)
    raw = rng.integers(0, space.cardinalities, size=(_TRIED, len(space.slots)))
    raw[0], raw[1] = 0, space.cardinalities - 1
    _check_blocks(space)
    _check_canonical(space, raw)
    if not removes_dead_work:
        _check_same_blocks(space, raw)
    _check_sample(space, seed)
    chosen = unique_archs(np.concatenate([space.canonical(raw[:2]), space.sample(archs, rng)]))
    _check_index(space, chosen)
    for arch in rows_of(chosen):
        _check_round_trips(space, arch)
        _check_input(space, arch)
        check_network(space, arch, seed)


def _check_names(space: SearchSpace) -> None:
    for kind, names in (("slots", [s.name for s in space.slots]), ("positions", [p.name for p in space.positions])):
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"{kind} of {space.name} share the name {twice}; give each its own")
    require(bool(space.slots and space.positions), f"{space.name} needs at least one slot and one position")
    for position in space.positions:
        outer = [other.name for other in space.positions if position.name.startswith(f"{other.name}.")]
        require(
            not outer, f"position {position.name!r} lies inside of position {outer}; no module may belong to two blocks"
        )
        wrong = [slot for slot in position.slots if slot not in range(len(space.slots))]
        require(
            not wrong and len(set(position.slots)) == len(position.slots),
            f"position {position.name!r} depends on slots {position.slots}; give distinct indices below "
            f"{len(space.slots)}",
        )


def _check_config(space: SearchSpace) -> None:
    name = type(space).__name__
    try:
        config = json.loads(json.dumps(dict(space.config), allow_nan=False))
        rebuilt = type(space)(**config)
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"{name}(**config) fails: {error}; config must hold the JSON-serialisable arguments of {name}"
        ) from error
    for attribute in ("slots", "positions", "num_classes", "name"):
        ours, theirs = getattr(space, attribute), getattr(rebuilt, attribute)
        require(ours == theirs, f"{name}(**config) has other {attribute}: {theirs} instead of {ours}; complete config")
    again = json.loads(json.dumps(dict(rebuilt.config)))
    require(config == again, f"{name}(**config) has another config: {again} instead of {config}")


def _check_canonical(space: SearchSpace, raw: IntMatrix) -> None:
    given = raw.copy()
    canonical = space.canonical(given)
    require(bool((given == raw).all()), f"canonical of {space.name} changes the array it is given; copy it first")
    require(
        canonical.shape == raw.shape and np.issubdtype(canonical.dtype, np.integer),
        f"canonical of {space.name} gives {canonical.shape} {canonical.dtype} for {raw.shape} {raw.dtype}; "
        "give integers of the same shape",
    )
    again = space.canonical(canonical.copy())
    for before, row, twice in zip(raw, canonical, again, strict=True):
        text = f"canonical of {space.name} makes {format_arch(before)} to {format_arch(row)}"
        require(
            bool(((row >= 0) & (row < space.cardinalities)).all()), f"{text}, which is not in the space; inactive is 0"
        )
        require(bool((row == twice).all()), f"{text} and that to {format_arch(twice)}; it must be idempotent")
        alone = space.canonical(before[None].copy())[0]
        require(bool((row == alone).all()), f"{text} among other rows, to {format_arch(alone)} alone; treat rows alike")


def _check_same_blocks(space: SearchSpace, raw: IntMatrix) -> None:
    for before, after in zip(raw, space.canonical(raw.copy()), strict=True):
        for place, position in enumerate(space.positions):
            blocks = [space.block_at(place, [int(row[slot]) for slot in position.slots]) for row in (before, after)]
            require(
                blocks[0] == blocks[1],
                f"canonical of {space.name} makes {format_arch(before)} to {format_arch(after)}, another network: "
                f"at position {position.name!r} stands {_key(blocks[1])} instead of {_key(blocks[0])}; set only slots "
                "to 0 that change no block (or pass removes_dead_work=True if what it leaves out has no effect)",
            )


def _check_sample(space: SearchSpace, seed: int) -> None:
    n = _TRIED
    first, second = (space.sample(n, np.random.default_rng(seed)) for _ in range(2))
    require(
        first.shape == (n, len(space.slots)),
        f"sample({n}) of {space.name} has the shape {first.shape}; give ({n}, {len(space.slots)})",
    )
    require(bool((first == second).all()), f"sample of {space.name} differs for the same seed; draw from rng only")
    for row, canonical in zip(first, space.canonical(first.copy()), strict=True):
        require(
            bool((row == canonical).all()),
            f"sample of {space.name} gives {format_arch(row)}, whose canonical form is {format_arch(canonical)}; "
            "return canonical rows",
        )


def _check_blocks(space: SearchSpace) -> None:
    keys: dict[Block, str] = {}
    blocks: dict[str, Block] = {}
    for place, position in enumerate(space.positions):
        for options, block in space.position_blocks(place):
            where = f"position {position.name!r} of {space.name} with options {options}"
            again = space.block_at(place, list(options))
            require(again == block, f"{where}: block_at differs between two calls: {_key(block)}, then {_key(again)}")
            if block is None:
                continue
            try:
                key = keys.setdefault(block, block.key)
            except TypeError as error:
                raise AssertionError(f"{where}: the block {block!r} cannot be hashed ({error}); freeze it") from error
            require(key == block.key, f"{where}: equal blocks have the keys {key} and {block.key}; let key be fields")
            other = blocks.setdefault(key, block)
            require(other == block, f"{where}: the key {key} stands for both {other} and {block}; keys must differ")


def _check_index(space: SearchSpace, archs: IntMatrix) -> None:
    index = BlockIndex(space)
    for name in ("macs", "params"):
        values = np.array([getattr(block, name) for block in index.blocks], dtype=np.float64)
        totals = index.total(archs, index.costs(values))
        for arch, total in zip(rows_of(archs), totals, strict=True):
            wanted = sum(getattr(block, name) for block in space.blocks(arch))
            require(
                total == wanted,
                f"{name} of {format_arch(arch)} are {total:.0f} by position and {wanted} by blocks(); "
                "let block_at depend on its arguments only",
            )


def _check_round_trips(space: SearchSpace, arch: Arch) -> None:
    try:
        described = space.arch_of(json.loads(json.dumps(space.describe(arch))))
    except HwnasError as error:
        raise AssertionError(f"describe({format_arch(arch)}) cannot be read by arch_of: {error}") from error
    require(described == arch, f"arch_of(describe({format_arch(arch)})) of {space.name} is {format_arch(described)}")
    require(space.check(parse_arch(format_arch(arch))) == arch, f"{format_arch(arch)} does not survive being text")


def _check_input(space: SearchSpace, arch: Arch) -> None:
    shape, largest = space.input_shape(arch), space.largest_input
    require(
        len(shape) == 3 and all(isinstance(extent, int) and extent > 0 for extent in shape),
        f"input_shape({format_arch(arch)}) of {space.name} is {shape}; give (channels, height, width)",
    )
    require(
        shape[0] == largest[0] and shape[1] <= largest[1] and shape[2] <= largest[2],
        f"input_shape({format_arch(arch)}) of {space.name} is {shape}, above largest_input {largest}; "
        "let one slot decide the size",
    )


def _key(block: Block | None) -> str:
    return "nothing" if block is None else block.key
