from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import PredictorError
from hwnas.latency.contradiction import require_consistent

BLOCKS, NETWORKS = 20, 30
KEYS = [f"block {number}" for number in range(BLOCKS)]


def measured(seed: int = 0, noise: float = 0.03):
    """Rows (blocks,), counts (n, blocks) and what the networks took: the sums of their rows, and noise."""
    rng = np.random.default_rng(seed)
    rows_ms = np.exp(rng.normal(0, 1, BLOCKS))
    counts = rng.integers(0, 2, (NETWORKS, BLOCKS)) * 1.0
    counts[:, 0] = 1  # a stem is in every network
    return rows_ms, counts, 0.1 + counts @ rows_ms * np.exp(rng.normal(0, noise, NETWORKS))


def check(rows_ms, counts, measured_ms, intercept_ms: float = 0.1, max_error: float | None = None) -> None:
    names = [f"network {number}" for number in range(len(measured_ms))]
    require_consistent(KEYS, rows_ms, counts, intercept_ms + counts @ rows_ms, measured_ms, names, max_error)


@given(st.integers(0, 1000), st.floats(0, 0.08))
def test_a_table_like_any_is_consistent(seed: int, noise: float) -> None:
    check(*measured(seed, noise))


@given(st.integers(0, 1000), st.integers(0, BLOCKS - 1), st.sampled_from([1e3, 1e9, 1e300]))
def test_a_row_that_is_far_too_long_is_named(seed: int, block: int, factor: float) -> None:
    rows_ms, counts, measured_ms = measured(seed)
    rows_ms[block] *= factor
    with pytest.raises(PredictorError, match=rf"contradicts itself.* its row block {block}\b.*--fresh"):
        check(rows_ms, counts, measured_ms)


def test_a_row_that_no_network_holds_is_named_too() -> None:
    rows_ms, counts, measured_ms = measured()
    counts[:, 7], rows_ms[7] = 0, 1e9
    with pytest.raises(PredictorError, match=r"its row block 7 is 1e\+09 ms, its slowest whole network takes"):
        check(rows_ms, counts, measured_ms)


@pytest.mark.parametrize("factor", [5.0, 1 / 1000])
def test_a_row_that_is_merely_wrong_is_named_with_what_would_fit(factor: float) -> None:
    rows_ms, counts, measured_ms = measured()
    large = int(np.argmax(rows_ms))
    right = rows_ms[large]
    rows_ms[large] *= factor
    with pytest.raises(PredictorError) as raised:
        check(rows_ms, counts, measured_ms, max_error=0.05)
    found = re.search(r"its row (.*) explains it best: it is (.*) ms, (.*) ms would fit", str(raised.value))
    assert found is not None
    assert found[1] == KEYS[large]
    assert float(found[2]) == pytest.approx(rows_ms[large], rel=1e-3)
    assert float(found[3]) == pytest.approx(right, rel=0.2)


def test_rows_of_another_unit_are_no_single_rows_fault() -> None:
    rows_ms, counts, measured_ms = measured()
    with pytest.raises(PredictorError, match="contradicts itself"):
        check(rows_ms * 1000, counts, measured_ms)
    with pytest.raises(PredictorError, match="no single row explains it"):
        check(rows_ms / 1000, counts, measured_ms)


@pytest.mark.parametrize(("factor", "max_error", "consistent"), [
    (1.45, None, True),
    (1.55, None, False),
    (1.65, 0.2, True),
    (1.75, 0.2, False),
    (1.09, 0.0, True),
    (1.11, 0.0, False),
    (1 / 1.45, None, True),
    (1 / 1.55, None, False),
])  # fmt: skip
def test_a_table_may_be_as_wrong_as_it_says_with_room(factor: float, max_error: float | None, consistent: bool) -> None:
    rows_ms, counts, measured_ms = measured(noise=0.0)
    measured_ms[3] /= factor
    if consistent:
        check(rows_ms, counts, measured_ms, max_error=max_error)
        return
    with pytest.raises(PredictorError, match="for the network network 3, which took"):
        check(rows_ms, counts, measured_ms, max_error=max_error)


def test_a_table_without_networks_has_nothing_to_contradict() -> None:
    check(np.ones(BLOCKS) * 1e9, np.empty((0, BLOCKS)), np.empty(0))
