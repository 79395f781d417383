from __future__ import annotations

import pytest

from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.testing.spaces import check_space


@pytest.mark.parametrize(
    ("arguments", "archs"),
    [({}, 0), ({"channels": 4, "cells": 2, "resolution": 8, "num_classes": 3, "in_channels": 1}, 8)],
    ids=["default", "small"],
)
def test_conformance(arguments, archs):
    check_space(NasBench201Space(**arguments), archs=archs, removes_dead_work=True)


def test_edges_that_cannot_matter_are_another_list_of_blocks():
    with pytest.raises(AssertionError, match="removes_dead_work"):
        check_space(NasBench201Space(channels=4, cells=1, resolution=8), archs=0)
