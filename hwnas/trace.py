"""A module as a list of operators with shapes: one walk that gives MACs, parameters and directly written graphs.

The module is traced symbolically (torch.fx) and its shapes are computed on the meta device, so nothing is calculated
and a whole network takes milliseconds, where an exporter takes seconds.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hwnas.errors import SpaceError

Shape = tuple[int, ...]

# torch.fx replaces how every module is called while it traces one, so two threads would disturb each other.
_TRACING = threading.Lock()


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """(batch, channels, height, width) times a learned number, a parameter without axes or what is computed of one.

    In files it is a batch normalisation: every format has that, and runtimes keep their own memory layout for it. With
    twelve such pairs, a network in ONNX Runtime on a CPU took a third less time than with Mul. A module that calls it
    marks it by `torch.fx.wrap("scale")`.
    """
    # Only for exporters. Gradients through an expanded weight are wrong in torch's kernel for channels_last on CPUs.
    if not torch.compiler.is_compiling():
        return x * factor
    channels = x.shape[1]
    zeros, ones = factor.new_zeros(channels), factor.new_ones(channels)
    return functional.batch_norm(x, zeros, ones, factor.expand(channels), zeros, False, 0.0, 0.0)


MODULE_KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.BatchNorm2d: "batch_norm",
    nn.Linear: "linear",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.AdaptiveAvgPool2d: "global_avg_pool",
    nn.AvgPool2d: "avg_pool",
    nn.MaxPool2d: "max_pool",
    nn.Flatten: "flatten",
    nn.Identity: "identity",
    nn.Dropout: "identity",
}
FUNCTION_KINDS: dict[Callable[..., Any], str] = {
    operator.add: "add",
    torch.add: "add",
    operator.mul: "mul",
    torch.mul: "mul",
    torch.cat: "concat",
    torch.flatten: "flatten",
    functional.relu: "relu",
    scale: "scale",
}
# The forms of operators that can be written to graphs: any other is an error, not a graph of something else.
PLAIN_MODULES: dict[type[nn.Module], dict[str, tuple[object, ...]]] = {
    nn.Conv2d: {"padding_mode": ("zeros",)},
    nn.BatchNorm2d: {"track_running_stats": (True,)},
    nn.AdaptiveAvgPool2d: {"output_size": (1, (1, 1))},
    nn.AvgPool2d: {"ceil_mode": (False,), "divisor_override": (None,)},
    nn.MaxPool2d: {"ceil_mode": (False,), "dilation": (1, (1, 1)), "return_indices": (False,)},
    nn.Flatten: {"start_dim": (1,), "end_dim": (-1,)},
}
# Arguments beside the tensors: torch.cat(tensors, 1), torch.flatten(x, 1), relu(x, inplace).
PLAIN_ARGUMENTS: dict[str, tuple[list[object], ...]] = {
    "concat": ([1],),
    "flatten": ([1],),
    "relu": ([], [False], [True]),
}


# What may be computed of learned numbers alone, before they multiply a tensor.
_OF_NUMBERS = (operator.sub, operator.add, operator.mul)


class Factor(nn.Module):
    """The learned number by which an operator "scale" multiplies its input; it is read, never called."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().clone(), requires_grad=False)


@dataclass(frozen=True)
class Op:
    """One operator: `path` is the module that computes it, `inputs` and `output` name tensors, shapes have batch 1.

    The `module` of kind "scale" is a Factor.
    """

    kind: str
    path: str
    inputs: tuple[str, ...]
    output: str
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    module: nn.Module | None = field(compare=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image: convolutions and linear layers, as the field counts them."""
        if isinstance(self.module, nn.Conv2d):
            kernel_height, kernel_width = self.module.kernel_size
            per_output = self.module.in_channels // self.module.groups * kernel_height * kernel_width
            return per_output * _count(self.output_shape)
        if isinstance(self.module, nn.Linear):
            return self.module.in_features * _count(self.output_shape)
        return 0


@dataclass(frozen=True)
class Trace:
    """The operators of a module in execution order; tensor names are unique."""

    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    output: str

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(op.macs for op in self.ops)


def count_params(module: nn.Module) -> int:
    """Number of trainable parameters (weights, biases, affine batch normalisation)."""
    return sum(parameter.numel() for parameter in module.parameters())


def trace(module: nn.Module, input_shapes: Sequence[Shape]) -> Trace:
    """The operators that `module` runs on inputs of the given shapes, each (channels, height, width) or longer.

    Shapes are without the batch; the trace has batch 1. Raises SpaceError, naming the operator, for one that is not in
    MODULE_KINDS or FUNCTION_KINDS, is of a form that cannot be written to a graph, or does not fit its input.
    """
    with _TRACING:
        return _trace(module, input_shapes)


def _trace(module: nn.Module, input_shapes: Sequence[Shape]) -> Trace:
    try:
        graph = fx.Tracer().trace(module)
    except fx.proxy.TraceError as error:
        raise SpaceError(f"{type(module).__name__} cannot be traced, its forward depends on values: {error}") from error
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != len(input_shapes):
        raise SpaceError(f"{type(module).__name__} takes {len(inputs)} inputs, {len(input_shapes)} shapes were given")
    modules = dict(module.named_modules())
    tensors: dict[fx.Node, Tensor] = {}
    names: dict[fx.Node, str] = {}
    ops: list[Op] = []
    numbers: dict[fx.Node, Tensor] = {}
    output = ""
    for node, shape in zip(inputs, input_shapes, strict=True):
        tensors[node] = torch.empty((1, *shape), device="meta")
        names[node] = node.name
    for node in graph.nodes:
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise SpaceError(f"{type(module).__name__} gives {node.args[0]}, not one tensor")
            output = names[node.args[0]]
        elif (number := _number(node, module, numbers)) is not None:
            numbers[node] = number
        elif node.op != "placeholder":
            leaf, path, kind = _operator(node, modules)
            sources = list(_tensor_arguments(node))
            if kind == "scale":
                sources, leaf = sources[:1], _factor(sources[-1], numbers)
            elif not numbers.keys().isdisjoint(sources):
                raise SpaceError(f"{node.name} computes with a learned number; multiply by it with hwnas.trace.scale")
            result = tensors[sources[0]] if kind == "scale" else _run_on_meta(node, leaf, tensors)
            tensors[node] = result
            names[node] = names[sources[0]] if kind == "identity" else node.name
            if kind != "identity":
                ops.append(
                    Op(
                        kind,
                        path,
                        tuple(names[source] for source in sources),
                        names[node],
                        tuple(tuple(tensors[source].shape) for source in sources),
                        tuple(result.shape),
                        leaf,
                    )
                )
    return Trace(tuple(ops), tuple(node.name for node in inputs), tuple((1, *shape) for shape in input_shapes), output)


def _number(node: fx.Node, module: nn.Module, numbers: dict[fx.Node, Tensor]) -> Tensor | None:
    """The value of a node that is a learned number or computed of such alone; None for any other."""
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = getattr(module.get_submodule(owner), name)
        return value.detach() if isinstance(value, Tensor) and value.ndim == 0 else None
    arguments = [numbers.get(item, item) if isinstance(item, fx.Node) else item for item in node.args]
    known = any(isinstance(item, Tensor) for item in arguments) and not any(isinstance(i, fx.Node) for i in arguments)
    if node.op != "call_function" or node.target not in _OF_NUMBERS or not known:
        return None
    assert callable(node.target)
    result = node.target(*arguments)
    assert isinstance(result, Tensor)
    return result


def _factor(node: fx.Node, numbers: dict[fx.Node, Tensor]) -> Factor:
    if node not in numbers:
        raise SpaceError(
            f"scale takes a tensor and a learned number (a parameter without axes), got {node.format_node()}"
        )
    return Factor(numbers[node])


def _operator(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[nn.Module | None, str, str]:
    if node.op == "call_module":
        leaf = modules[str(node.target)]
        if type(leaf) in MODULE_KINDS:
            _require_plain_module(leaf, str(node.target))
            return leaf, str(node.target), MODULE_KINDS[type(leaf)]
        unknown = type(leaf).__name__
    elif node.op == "call_function" and node.target in FUNCTION_KINDS:
        stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        kind = FUNCTION_KINDS[node.target]
        _require_plain_arguments(node, kind)
        return None, stack[-1] if stack else "", kind
    else:
        unknown = getattr(node.target, "__name__", str(node.target))
    raise SpaceError(
        f"the operator {unknown} (node {node.name}) has no known cost and graph; build the block from "
        f"{sorted(kind.__name__ for kind in MODULE_KINDS)}, +, * and torch.cat, or add it to hwnas/trace.py and "
        "hwnas/graphs"
    )


def _require_plain_module(leaf: nn.Module, path: str) -> None:
    for name, accepted in PLAIN_MODULES.get(type(leaf), {}).items():
        value = getattr(leaf, name)
        if value not in accepted:
            raise SpaceError(f"{path}: {leaf} cannot be written to a graph with {name}={value!r}, only {accepted[0]!r}")
    if isinstance(leaf, nn.Conv2d) and isinstance(leaf.padding, str):
        raise SpaceError(f"{path}: {leaf} cannot be written to a graph, give its padding as numbers")


def _require_plain_arguments(node: fx.Node, kind: str) -> None:
    others = [
        argument for argument in (*node.args, *node.kwargs.values()) if not isinstance(argument, (fx.Node, list, tuple))
    ]
    accepted = PLAIN_ARGUMENTS.get(kind, ([],))
    if others not in accepted:
        raise SpaceError(
            f"the operator {kind} (node {node.name}) takes tensors{' and ' * bool(accepted[0])}"
            f"{', '.join(map(str, accepted[0]))} only, got {node.format_node()}"
        )


def _tensor_arguments(node: fx.Node) -> Iterator[fx.Node]:
    for argument in (*node.args, *node.kwargs.values()):
        if isinstance(argument, fx.Node):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from (item for item in argument if isinstance(item, fx.Node))


def _run_on_meta(node: fx.Node, leaf: nn.Module | None, tensors: dict[fx.Node, Tensor]) -> Tensor:
    if leaf is not None:
        return _leaf_shape(leaf, tensors[next(_tensor_arguments(node))], str(node.target))
    args: Any
    kwargs: Any
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), tensors.__getitem__)
    assert callable(node.target)
    try:
        result = node.target(*args, **kwargs)
    except RuntimeError as error:
        raise SpaceError(f"the operator {node.name} does not fit its inputs: {error}") from error
    assert isinstance(result, Tensor)
    return result


def _leaf_shape(leaf: nn.Module, x: Tensor, path: str) -> Tensor:
    # Only shapes are wanted, and a leaf's weights may live on any device, so most leaves are not called at all.
    axis, name = (-1, "in_features") if isinstance(leaf, nn.Linear) else (1, "in_channels")
    wanted = getattr(leaf, "num_features" if isinstance(leaf, nn.BatchNorm2d) else name, x.shape[axis])
    if x.shape[axis] != wanted:
        raise SpaceError(f"{path}: {leaf} needs {wanted} channels, its input has the shape {tuple(x.shape)}")
    if isinstance(leaf, nn.Conv2d):
        height, width = (
            (x.shape[2 + axis] + 2 * int(leaf.padding[axis]) - leaf.dilation[axis] * (leaf.kernel_size[axis] - 1) - 1)
            // leaf.stride[axis]
            + 1
            for axis in (0, 1)
        )
        return x.new_empty((x.shape[0], leaf.out_channels, height, width))
    if isinstance(leaf, nn.Linear):
        return x.new_empty((*x.shape[:-1], leaf.out_features))
    if isinstance(leaf, (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten)):
        result = leaf(x)
        assert isinstance(result, Tensor)
        return result
    return x


def _count(shape: Shape) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total
