"""`hwnas profile`: measure the blocks of a search space inside whole networks, and write the latency table.

What a block costs inside a fused network is not what it costs alone. So whole networks are profiled node by node (a
covering set in which every block of the space occurs, or a few random ones), each node's time is given to its block,
and whole networks measured without the profiler calibrate the result (`calibrate.py`). Where a runtime gives no times
of single nodes, every block is measured as a model of its own instead, and the calibration has more to correct.
Further networks, never fitted, give the error that is printed beside the noise floor: the same networks measured again
by a second session. Some are drawn at random, others as a search would choose them (`rehearsal.py`).

Every finished group of measurements is in a journal beside the table before the next one begins; a killed profile
goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from hwnas.graphs import write_block
from hwnas.latency.assemble import draft, make_table
from hwnas.latency.calibrate import Calibration, FloatVector
from hwnas.latency.fusion import FusionCounts
from hwnas.latency.index import BlockIndex
from hwnas.latency.rehearsal import searched_archs
from hwnas.latency.selection import Selection, SweepConfig, select_networks
from hwnas.latency.session import AGAIN, BLOCKS, NODES, WHOLE, Session
from hwnas.progress import Progress, silent
from hwnas.space import IntMatrix, SearchSpace, format_arch, rows_of
from hwprof.devices import Device
from hwprof.runtimes import kind_of
from hwprof.table import LatencyTable, write_table
from hwprof.target import Plan, Target

# The share of the whole networks that a table can do without. Fewer make a less certain table, and its validation
# says how much less; a machine that others use refuses many, and no table would help its user less.
SPARED = 0.5

Costs = list[FloatVector]


def profile(
    space: SearchSpace,
    target: Target,
    devices: Mapping[str, Device],
    path: Path,
    config: SweepConfig,
    *,
    progress: Progress = silent,
) -> LatencyTable:
    """Measure the space on the devices, all of one kind, and write the table to `path`.

    Goes on where a killed profile stopped. Raises PredictorError if too many measurements were refused (nothing
    measured is lost: call again), DeviceError if every device stays away.
    """
    index = BlockIndex(space)
    selection = select_networks(space, index, config)
    fit, held_out = rows_of(selection.fit), rows_of(selection.held_out)
    with Session(space, target, devices, path, rows_of(selection.anchors), config, progress=progress) as session:
        if kind_of(target.runtime).nodes:
            profiled = rows_of(selection.profiled)
            session.measure_archs(NODES, profiled, config.node_plan, nodes=True)
            # Every profiled network may hold the only sight of a block; of the others a few can be spared.
            session.require(NODES, [*map(format_arch, profiled)], "profiled networks", spared=0.0)
        else:
            _measure_blocks(session, index, selection.profiled, config.node_plan)
        session.farm.restart()
        session.measure_archs(WHOLE, [*fit, *held_out], config.plan)
        session.require(WHOLE, [*map(format_arch, fit)], "networks to fit", SPARED)
        session.require(WHOLE, [*map(format_arch, held_out)], "networks to validate", SPARED)
        selection = _rehearse(session, index, selection, config)
        held_out += rows_of(selection.searched)
        session.farm.restart()
        session.measure_archs(AGAIN, held_out, config.plan)
        session.require(AGAIN, [*map(format_arch, held_out)], "networks of the second session", SPARED)
        table = make_table(session, index, selection)
        write_table(table, path)
        session.journal.delete()
    return table


def _rehearse(session: Session, index: BlockIndex, selection: Selection, config: SweepConfig) -> Selection:
    """The selection with the networks that searches would choose, measured: to fit, and in the last round to validate.

    They follow from the seed and from what was measured, which is in the journal.
    """
    rng = np.random.default_rng([config.seed, 5])
    fusions = FusionCounts(session.space, selection.fusions)
    for number, wanted in enumerate(selection.rounds, 1):
        if wanted == 0:
            continue
        calibration = draft(session, index, selection).calibration
        costs = index.costs(calibration.block_ms)

        def predict_ms(archs: IntMatrix, found: Calibration = calibration, costs: Costs = costs) -> FloatVector:
            return np.asarray(found.intercept_ms + index.total(archs, costs) + fusions(archs) @ found.fusion_ms)

        archs = searched_archs(session.space, index, predict_ms, wanted, rng, exclude=selection.whole)
        names = [*map(format_arch, archs)]
        session.measure_archs(WHOLE, rows_of(archs), config.plan)
        session.require(WHOLE, names, "networks that a search would choose", SPARED)
        if number < len(selection.rounds):
            selection = replace(selection, fit=np.concatenate([selection.fit, archs]))
        else:
            selection = replace(selection, searched=archs)
    return selection


def _measure_blocks(session: Session, index: BlockIndex, profiled: IntMatrix, plan: Plan) -> None:
    """Measure every block of the profiled networks as a model of its own, where a runtime gives no node times."""
    blocks = dict(zip(index.keys, index.blocks, strict=True))
    seen = np.asarray(index.counts(profiled).any(axis=0))
    names = [key for key, wanted in zip(index.keys, seen, strict=True) if wanted]
    session.measure(BLOCKS, names, lambda key, stem: write_block(blocks[key], session.target, stem), plan)
    # What is still missing is estimated from the others, like the blocks of a quick table that no network holds.
    session.require(BLOCKS, names, "blocks", spared=0.2)
