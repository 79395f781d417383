"""Isolated blocks summed: every block is measured as a model of its own (as ProxylessNAS does, arXiv 1812.00332)."""

from __future__ import annotations

from baselines.session import Baseline, Context, corrected, measure_parts
from hwnas.run import Run
from hwnas.space import IntMatrix


def isolated_blocks(run: Run, archs: IntMatrix, context: Context) -> list[Baseline]:
    """The sum of the blocks' times, and that sum after an affine fit on the networks that calibrated the table."""
    session = measure_parts(run, context, "isolated blocks", {block.key: block.trace for block in run.index.blocks})
    block_ms = session.require(list(run.index.keys))
    return corrected(run, context, "isolated blocks", block_ms, archs, session.device_seconds)
