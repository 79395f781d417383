"""A network layer by layer: what each of its blocks is, and its part of the latency."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hwnas.blocks import Block
from hwnas.card import PROFILED, Layer
from hwnas.latency.fusion import FusionCounts
from hwnas.space import Arch, SearchSpace
from hwnas.trace import Shape
from hwprof.table import LatencyTable


def layers_of(
    space: SearchSpace, table: LatencyTable | None, arch: Arch, profiled: Mapping[int, float] | None = None
) -> tuple[Layer, ...]:
    """The blocks of `space.placed_blocks(arch)` with their ms and shares.

    `profiled`: position -> ms in this network, by its nodes (`worst.profile_networks`); what the profiler itself takes
    is taken off as the table does it, block by block. Without it the ms are those of the table's rows, and None without
    a table or under one without rows for all of them (one made by a transfer).
    """
    placed = space.placed_blocks(arch)
    numbers = {position.name: number for number, position in enumerate(space.positions)}
    rows = [table.rows.get(block.key) if table else None for _, block in placed]
    if profiled:  # a block that the runtime leaves no node of costs nothing
        times = [profiled.get(numbers[position.name], 0.0) for position, _ in placed]
        corrections = [row.ms / row.profiled_ms for row in rows if row and row.profiled_ms]
        if len(corrections) == len(times):
            times = [ms * correction for ms, correction in zip(times, corrections, strict=True)]
    else:
        times = [row.ms if row else 0.0 for row in rows]
    known = bool(profiled) or None not in rows
    total = sum(times)
    return tuple(
        Layer(
            position=position.name,
            key=block.key,
            inputs=block.input_shapes,
            output=_output_shape(block),
            reads=reads,
            macs=block.macs,
            params=block.params,
            ms=ms if known else None,
            share=ms / total if known and total > 0 else None,
            origin=PROFILED if profiled else row.origin if known and row else "",
        )
        for (position, block), reads, row, ms in zip(placed, space.sources(arch), rows, times, strict=True)
    )


def other_ms(space: SearchSpace, table: LatencyTable | None, arch: Arch) -> dict[str, float]:
    """What the table's prediction adds to the rows of the blocks, by name; may be below 0."""
    if table is None or not table.rows:
        return {}
    counts = FusionCounts(space, tuple(table.fusion_ms))(np.array([arch], dtype=np.int64))[0]
    fused = float(counts @ np.array(list(table.fusion_ms.values()), dtype=np.float64)) if table.fusion_ms else 0.0
    return {"every inference": table.intercept_ms, **({"fused across blocks": fused} if table.fusion_ms else {})}


def _output_shape(block: Block) -> Shape:
    trace = block.trace
    shapes = dict(zip(trace.inputs, trace.input_shapes, strict=True)) | {op.output: op.output_shape for op in trace.ops}
    return shapes[trace.output][1:]  # without the batch
