"""Conformance of a search space's networks: modules where the positions say, nothing else, and graphs that agree."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from hwnas.errors import SpaceError
from hwnas.graphs.onnx import onnx_model
from hwnas.graphs.plain import plain_graph
from hwnas.space import Arch, SearchSpace, format_arch
from hwnas.trace import Op, Shape, count_params, trace

TOLERANCE = 1e-4  # of the largest logit
_IMAGE = "the image"


def require(holds: bool, message: str) -> None:
    """Raise AssertionError with the message unless `holds` (an assert statement is left out by `python -O`)."""
    if not holds:
        raise AssertionError(message)


def check_network(space: SearchSpace, arch: Arch, seed: int) -> None:
    """Raise AssertionError unless the network of a canonical architecture is its blocks and nothing else."""
    name = f"{format_arch(arch)} of {space.name}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = space.build(arch)
        torch.manual_seed(seed)
        _check_reproducible(network, space.build(arch), name)
        _check_modules(space, arch, network, name)
        _check_operators(space, arch, network, name)
        _check_logits(space, arch, network, name)
        randomise(network)
        _check_graph(space, arch, network, name)


def _check_reproducible(network: nn.Module, again: nn.Module, name: str) -> None:
    first, second = network.state_dict(), again.state_dict()
    require(first.keys() == second.keys(), f"{name} is built with other weights each time: {set(first) ^ set(second)}")
    for key, tensor in first.items():
        require(
            torch.equal(tensor, second[key]),
            f"{key} of {name} differs between two builds after the same torch.manual_seed; draw from torch only",
        )
        require(
            tensor.numel() == 0 or tensor.data_ptr() != second[key].data_ptr(),
            f"{key} of {name} is shared by two builds; make fresh modules in build",
        )


def _check_modules(space: SearchSpace, arch: Arch, network: nn.Module, name: str) -> None:
    placed = space.placed_blocks(arch)
    for position, block in placed:
        try:
            module = network.get_submodule(position.name)
        except AttributeError:
            raise AssertionError(
                f"{name} has no module {position.name!r}, where {block.key} should stand; "
                "name modules in build by their positions"
            ) from None
        params = count_params(module)
        require(
            params == block.params,
            f"module {position.name!r} of {name} has {params} parameters, its block {block.key} has {block.params}; "
            "build it by block.module()",
        )
    total, inside = count_params(network), sum(block.params for _, block in placed)
    require(total == inside, f"{name} has {total} parameters, its blocks {inside}; put every layer in a position")


def _check_operators(space: SearchSpace, arch: Arch, network: nn.Module, name: str) -> None:
    try:
        traced = trace(network, [space.input_shape(arch)])
    except SpaceError as error:
        raise AssertionError(f"{name} cannot be traced: {error}") from error
    placed = space.placed_blocks(arch)
    found: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    makers: dict[str, str] = {}  # tensor -> position
    read: dict[str, set[str]] = defaultdict(set)
    for op in traced.ops:
        owner = next((p.name for p, _ in placed if op.path == p.name or op.path.startswith(f"{p.name}.")), None)
        if owner is None:
            raise AssertionError(
                f"{name} computes {op.kind} in {op.path or 'the network itself'!r}, outside of every position that "
                "holds a block, so no latency would be counted for it; make it a block"
            )
        found[owner].append(_work(op))
        makers[op.output] = owner
        read[owner] |= {makers.get(tensor, _IMAGE) for tensor in op.inputs} - {owner}
    names = [position.name for position, _ in placed]
    sources = space.sources(arch)
    require(len(sources) == len(placed), f"sources of {name} gives {len(sources)} entries for {len(placed)} blocks")
    for reader, numbers in zip(names, sources, strict=True):
        said = {names[number] if number >= 0 else _IMAGE for number in numbers}
        require(
            read[reader] == said,
            f"position {reader!r} of {name} reads {sorted(read[reader])}, sources says {sorted(said)}; "
            "override sources to say what build connects",
        )
    for position, block in placed:
        wanted, works = [_work(op) for op in block.trace.ops], found[position.name]
        require(
            works == wanted,
            f"position {position.name!r} of {name} computes {works}, its block {block.key} computes {wanted}; "
            "block_at must give what build runs there, once",
        )
    macs = sum(block.macs for _, block in placed)
    require(traced.macs == macs, f"{name} has {traced.macs} MACs, its blocks have {macs}")


def _work(op: Op) -> tuple[Any, ...]:
    return op.kind, op.input_shapes, op.output_shape, op.macs


def _check_logits(space: SearchSpace, arch: Arch, network: nn.Module, name: str) -> None:
    # Training mode with one image is not asked for: batch normalisation refuses it where the image became one pixel.
    for batch, training in ((1, False), (3, False), (3, True)):
        network.train(training)
        mode = f"a batch of {batch} in {'training' if training else 'evaluation'}"
        images = torch.randn(batch, *space.input_shape(arch))
        fed: dict[str, list[tuple[Shape, ...]]] = defaultdict(list)
        with ExitStack() as hooks, torch.no_grad():
            for position, _ in space.placed_blocks(arch):
                module = network.get_submodule(position.name)
                hooks.callback(module.register_forward_pre_hook(partial(_note, fed[position.name])).remove)
            try:
                logits = network(images)
            except (RuntimeError, ValueError, TypeError) as error:
                raise AssertionError(f"{name} fails on {mode}: {error}") from error
        require(
            isinstance(logits, Tensor) and tuple(logits.shape) == (batch, space.num_classes),
            f"{name} gives {tuple(getattr(logits, 'shape', ()))} for {mode}; give ({batch}, {space.num_classes})",
        )
        require(bool(logits.isfinite().all()), f"{name} gives logits that are not finite for {mode}")
        for position, block in space.placed_blocks(arch):
            require(
                fed[position.name] == [block.input_shapes],
                f"position {position.name!r} of {name} is fed {fed[position.name]}, its block {block.key} expects "
                f"{block.input_shapes} once; correct its size or channels in block_at",
            )


def _note(fed: list[tuple[Shape, ...]], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    fed.append(tuple(tuple(tensor.shape[1:]) for tensor in inputs))


def randomise(network: nn.Module) -> None:
    """Batch normalisation as after training: with fresh statistics it does nothing, and errors in it stay hidden."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    nn.init.normal_(tensor, 0.0, 0.1)


def _check_graph(space: SearchSpace, arch: Arch, network: nn.Module, name: str) -> None:
    network.eval()
    images = torch.randn(2, *space.input_shape(arch))
    try:
        model = onnx_model(plain_graph(network, [space.input_shape(arch)], positions=space.positions, batch=2))
    except SpaceError as error:
        raise AssertionError(f"{name} cannot be written as a graph: {error}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (written,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = network(images).numpy()
    difference, scale = float(np.abs(written - expected).max()), float(np.abs(expected).max())
    require(
        difference <= TOLERANCE * scale,
        f"{name} in ONNX Runtime differs from its module by {difference:.2g} of {scale:.2g} (limit {TOLERANCE:g}): "
        "the directly written graph computes something else; look at the operators of the network",
    )
