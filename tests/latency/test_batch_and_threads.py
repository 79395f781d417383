"""Targets of several images and threads: the graph has the target's batch, and the agent runs it so."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwnas.graphs import write_arch
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.errors import MeasurementError
from hwprof.target import Plan, Target


def test_a_batch_on_two_threads_is_measured_and_another_batch_refused(tmp_path: Path) -> None:
    space = NasBench201Space(channels=4, cells=1, resolution=8)
    files = {
        f"batch {batch}": write_arch(space, (3, 3, 3, 3, 3, 3), Target(batch=batch), tmp_path / str(batch))
        for batch in (1, 4)
    }
    with AgentClient(make_device("local"), Target(batch=4, threads=2)) as client:
        (result,) = client.measure({"model": files["batch 4"]}, {}, Plan(), nodes=True).results
        assert result.wall_ms > 0
        assert result.nodes
        with pytest.raises(MeasurementError, match="has batch 1, the target has batch 4"):
            client.measure({"model": files["batch 1"]}, {}, Plan())
