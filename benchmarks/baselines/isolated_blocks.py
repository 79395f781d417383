"""Isolated blocks summed: every block is measured as a model of its own (as ProxylessNAS does, arXiv 1812.00332)."""

from __future__ import annotations

from functools import partial

from baselines.session import Baseline, Context, corrected, measure_parts
from hwnas.latency.graph import trace_model
from hwnas.run import Run
from hwnas.space import IntMatrix


def isolated_blocks(run: Run, archs: IntMatrix, context: Context) -> list[Baseline]:
    """The sum of the blocks' times, and that sum after an affine fit on the networks that calibrated the table."""
    graphs = {block.key: partial(trace_model, block.trace, batch=run.target.batch) for block in run.index.blocks}
    session = measure_parts(run, context, "isolated blocks", graphs)
    block_ms = session.require(list(run.index.keys))
    return corrected(run, context, "isolated blocks", block_ms, archs, session.device_seconds)
