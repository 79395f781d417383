from __future__ import annotations

import numpy as np
import pytest

from hwnas.errors import PredictorError
from hwnas.latency.index import BlockIndex
from hwnas.latency.rows import SMALLEST_MS, measured_rows, node_counts, position_times
from hwnas.spaces.nasbench201 import NasBench201Space

SPACE = NasBench201Space(channels=4, cells=1, resolution=8)


def test_times_of_nodes_go_to_their_positions():
    nodes = [("reorder_input", 1.0), ("b0:conv", 2.0), ("b0:relu", 4.0), ("reorder", 8.0), ("b3:conv", 16.0)]
    assert position_times(nodes) == {0: 15.0, 3: 16.0}
    # what the runtime adds belongs to the block it follows, also when that one comes back
    assert position_times([("b1:x", 1.0), ("b0:y", 2.0), ("copy", 4.0), ("b1:z", 8.0)]) == {1: 9.0, 0: 6.0}


@pytest.mark.parametrize("nodes", [[], [("conv", 1.0), ("reorder", 2.0)]])
def test_nodes_without_any_block_are_an_error(nodes):
    with pytest.raises(PredictorError, match=f"none of the {len(nodes)} profiled nodes"):
        position_times(nodes)


def test_rows_are_medians_over_occurrences():
    index = BlockIndex(SPACE)
    archs = np.array([[3, 3, 3, 3, 3, 3], [3, 0, 0, 0, 3, 0]])
    places = {position.name: place for place, position in enumerate(SPACE.positions)}
    conv_places = [places[f"stage0_cell0.edge{edge}"] for edge in ("01", "02", "12", "03", "13", "23")]
    first = dict.fromkeys(range(len(SPACE.positions)), 1.0) | dict(zip(conv_places, [1, 2, 3, 4, 5, 6], strict=True))
    second = {conv_places[0]: 7.0, conv_places[4]: 100.0}
    rows = measured_rows(index, archs, [first, second])
    row = rows["reluconv:size=8,in_channels=4,kernel=3"]
    assert (row.ms, row.count, row.origin) == (4.5, 8, "measured")
    assert 0 < row.spread <= 1
    # the second network left the stem without a node: free there
    assert rows[index.keys[0]].ms == pytest.approx((1 + SMALLEST_MS) / 2)
    assert not any("avgpool" in key for key in rows)


def test_a_block_that_is_always_fused_away_keeps_a_positive_row():
    rows = measured_rows(BlockIndex(SPACE), np.array([[3, 3, 3, 3, 3, 3]]), [{0: 1.0}])
    assert {row.ms for row in rows.values()} == {1.0, SMALLEST_MS}


def test_nodes_are_counted_with_those_the_runtime_added():
    archs = np.array([[3, 3, 3, 3, 3, 3]])
    index = BlockIndex(SPACE)
    nodes = [("b0:conv", 5.0), ("reorder", 1.0), ("b0:add", 2.0)]
    counts = node_counts(index, archs, [nodes])
    assert counts[index.keys[index.numbers(archs)[0, 0]]] == 3
    assert sorted(set(counts.values())) == [0, 3]
