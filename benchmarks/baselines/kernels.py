"""Isolated kernels with random forests, after nn-Meter (Zhang et al., MobiSys 2021, doi 10.1145/3458864.3467882).

Networks are split into the kernels that a runtime fuses (convolution, batch normalisation, activation), a sample of
the space's kernels is measured alone, a random forest per kind of kernel learns time from its configuration (the
paper's section 5: input size, channels, kernel, stride, operations, bytes), and a network is the sum of its kernels.
Deviations: fusion is by rule, not found by tests on the device, and kernels are sampled from this very space, which
spares the forests every extrapolation.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from torch import nn

from baselines.session import Baseline, Context, FloatVector, corrected, measure_parts
from hwnas.errors import PredictorError
from hwnas.run import Run
from hwnas.space import IntMatrix
from hwnas.trace import Op, Trace

MEASURED = 400
TREES = 300

_FUSING = ("conv", "linear", "batch_norm")
_FUSED = (("batch_norm",), ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid"))
# Only the shape's reading changes, no time is spent.
_FREE = ("flatten",)


@dataclass(frozen=True)
class Kernel:
    """Operators that run as one: `kind` says which, `config` is input size, channels in and out, kernel, stride, ...

    Equal kernels take equal time; `trace` is one place where the kernel stands.
    """

    kind: str
    config: tuple[int, ...]
    trace: Trace = field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.kind} {self.config}"


def kernels(traced: Trace) -> list[Kernel]:
    """The kernels of a block in execution order."""
    readers: dict[str, list[Op]] = defaultdict(list)
    for op in traced.ops:
        for source in op.inputs:
            readers[source].append(op)
    taken: set[str] = set()
    found = []
    for op in traced.ops:
        if op.output in taken or op.kind in _FREE:
            continue
        group = [op]
        for kinds in _FUSED if op.kind in _FUSING else ():
            # What another operator reads, or what the block gives, must be written to memory.
            last = group[-1].output
            if last != traced.output and len(readers[last]) == 1 and readers[last][0].kind in kinds:
                group.append(readers[last][0])
        taken |= {member.output for member in group}
        found.append(_kernel(group))
    return found


def _kernel(group: Sequence[Op]) -> Kernel:
    first, last = group[0], group[-1]
    shapes = dict(zip(first.inputs, first.input_shapes, strict=True))
    traced = Trace(tuple(group), tuple(shapes), tuple(shapes.values()), last.output)
    kind, kernel, stride, bias = first.kind, 1, 1, 0
    if isinstance(first.module, nn.Conv2d):
        kernel, stride = first.module.kernel_size[0], first.module.stride[0]
        bias = int(first.module.bias is not None)
        kind = "depthwise conv" if first.module.groups > 1 else "conv"
    elif isinstance(first.module, (nn.AvgPool2d, nn.MaxPool2d)):
        kernel, stride = (
            value if isinstance(value, int) else value[0] for value in (first.module.kernel_size, first.module.stride)
        )
    size = max(math.prod(shape[2:]) for shape in shapes.values())
    moved = sum(map(math.prod, (*shapes.values(), last.output_shape)))
    weights = sum(parameter.numel() for op in group if op.module for parameter in op.module.parameters())
    config = (
        size,
        first.input_shapes[0][1],
        last.output_shape[1],
        kernel,
        stride,
        traced.macs,
        4 * (moved + weights),
        len(shapes),
        bias,
    )
    return Kernel(" + ".join([kind, *(op.kind for op in group[1:])]), config, traced)


def isolated_kernels(run: Run, archs: IntMatrix, context: Context) -> list[Baseline]:
    """The sum of the kernels' estimated times, and that sum after an affine fit on whole networks."""
    of_blocks = [kernels(block.trace) for block in run.index.blocks]
    distinct = list(dict.fromkeys(kernel for found in of_blocks for kernel in found))
    chosen = sample(distinct, MEASURED, np.random.default_rng(context.seed))
    session = measure_parts(run, context, "isolated kernels", {kernel.name: kernel.trace for kernel in chosen})
    measured = [kernel for kernel in chosen if kernel.name in session.ms]
    predicted = forests(measured, np.array([session.ms[kernel.name] for kernel in measured]), distinct)
    ms = dict(zip(distinct, predicted, strict=True))
    block_ms = np.array([sum(ms[kernel] for kernel in found) for found in of_blocks])
    return corrected(run, context, "isolated kernels, random forests", block_ms, archs, session.device_seconds)


def sample(distinct: Sequence[Kernel], n: int, rng: np.random.Generator) -> list[Kernel]:
    """Up to n kernels, from every kind in turn: kinds of few are taken whole, the others share what is left."""
    kinds: dict[str, list[Kernel]] = defaultdict(list)
    for number in rng.permutation(len(distinct)):
        kinds[distinct[number].kind].append(distinct[number])
    ranked = [(turn, kernel) for members in kinds.values() for turn, kernel in enumerate(members)]
    ranked.sort(key=lambda pair: pair[0])
    return [kernel for _, kernel in ranked[:n]]


def forests(measured: Sequence[Kernel], ms: FloatVector, wanted: Sequence[Kernel]) -> FloatVector:
    """(wanted,) ms by a random forest for each kind. Raises PredictorError for a kind of which none was measured."""
    found = np.empty(len(wanted))
    for kind in dict.fromkeys(kernel.kind for kernel in wanted):
        known = [number for number, kernel in enumerate(measured) if kernel.kind == kind]
        if not known:
            raise PredictorError(f"no kernel of the kind {kind} could be measured: all were refused")
        asked = [number for number, kernel in enumerate(wanted) if kernel.kind == kind]
        forest = RandomForestRegressor(TREES, random_state=0)
        forest.fit(np.array([measured[number].config for number in known], dtype=float), ms[known])
        found[asked] = forest.predict(np.array([wanted[number].config for number in asked], dtype=float))
    return found
