from __future__ import annotations

import numpy as np
import pytest

from hwnas.ranks import average_ranks, places


@pytest.mark.parametrize(
    ("values", "ranks", "first"),
    [
        ([3.0, 1.0, 2.0], [3, 1, 2], [1, 3, 2]),
        ([5.0, 5.0, 1.0, 5.0], [3, 3, 1, 3], [1, 1, 4, 1]),
        ([np.nan, 1.0, -np.inf, np.nan], [2, 4, 2, 2], [2, 1, 2, 2]),
        ([], [], []),
    ],
)
def test_ranks_and_places(values: list[float], ranks: list[float], first: list[int]) -> None:
    assert average_ranks(np.array(values)).tolist() == ranks
    assert places(np.array(values)).tolist() == first
