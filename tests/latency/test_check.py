"""Does a table still hold? On a machine of a test's making: what it would measure today is said in advance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwnas.errors import PredictorError
from hwnas.latency import check as check_module
from hwnas.latency.check import MAX_SHIFT, REPEATED, SESSIONS, check_table, reanchored
from hwnas.space import format_arch
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.client import Group, Result
from hwprof.devices.local import LocalDevice
from hwprof.errors import TableError
from hwprof.table import LatencyTable, Model, Row, Validation
from hwprof.target import Target
from hwprof.timing import geometric_mean

SPACE = NasBench201Space(channels=4, cells=1, resolution=8)
NAMES = [format_arch(arch) for arch in np.unique(SPACE.sample(60, np.random.default_rng(0)), axis=0)]
ANCHORS = tuple(Model(name, "anchor", ms, 0.0) for name, ms in zip(NAMES, (1.0, 2.0, 4.0), strict=False))
HELD_OUT = tuple(Model(name, "held-out", 1.5, 0.0, 1.5) for name in NAMES[3:20])
TABLE = LatencyTable(
    target=Target(),
    fingerprint={"processor": "this one"},
    provenance={},
    intercept_ms=0.5,
    models=(*ANCHORS, *HELD_OUT),
    validation=Validation(17, 0.01, 0.02, 0.004),
    rows={"block": Row(0.25, 0.01, 3, profiled_ms=0.3)},
    fusion_ms={"relu shared": -0.01},
)


class Machine:
    """An agent that runs every model `slower` times as long as its table says, by name where a mapping is given."""

    slower: float | Mapping[str, float] = 1.0
    refused: str | None = None
    fingerprint: Mapping[str, str] = {"processor": "this one"}
    restarts = 0

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None: ...

    def patiently(self, job: Any) -> Any:
        return job()

    def restart(self) -> None:
        type(self).restarts += 1

    def ms(self, label: str) -> float:
        name = label.partition(" ")[2]
        then = next(model.ms for model in TABLE.models if model.name == name)
        return then * (self.slower if isinstance(self.slower, float) else self.slower.get(name, 1.0))

    def measure(self, models: Mapping[str, Any], anchors: Mapping[str, Any], plan: Any, seed: int) -> Group:
        assert all(path.exists() for path in (*models.values(), *anchors.values()))
        scale = geometric_mean([self.ms(name) for name in anchors])
        results = tuple(
            Result(name, self.ms(name) / scale, 0.01, 0.01, (), self.ms(name), 0.0, self.refused, None)
            for name in models
        )
        times = {name: (self.ms(name),) * 3 for name in anchors}
        return Group(results, (scale,) * 3, times, 0.0, 0.1, 0.0, 0, {})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> type[Machine]:
    fresh = type("Fresh", (Machine,), {})
    monkeypatch.setattr(check_module, "AgentClient", fresh)
    return fresh


@pytest.mark.parametrize("slower", [1.0, 1.7, 0.6])
def test_a_machine_of_another_speed_all_over_is_only_another_scale(machine: type[Machine], slower: float) -> None:
    machine.slower = slower
    check = check_table(SPACE, TABLE, LocalDevice())
    assert check.reason is None
    assert check.factor == pytest.approx(slower)
    assert check.change == pytest.approx(0.0, abs=1e-12)
    assert (check.networks, machine.restarts) == (REPEATED, SESSIONS - 1)
    again = reanchored(TABLE, check)
    assert [model.ms for model in again.models] == pytest.approx([model.ms * slower for model in TABLE.models])
    assert again.models[-1].again_ms == pytest.approx(1.5 * slower)
    assert again.intercept_ms == pytest.approx(0.5 * slower)
    assert again.rows["block"].ms == pytest.approx(0.25 * slower)
    assert again.rows["block"].profiled_ms == pytest.approx(0.3 * slower)
    assert again.fusion_ms["relu shared"] == pytest.approx(-0.01 * slower)
    assert again.provenance["checks"][0]["factor"] == pytest.approx(slower)
    twice = reanchored(again, replace(check, factor=1.0))
    assert [entry["factor"] for entry in twice.provenance["checks"]] == pytest.approx([slower, 1.0])


def test_anchors_that_moved_against_each_other_break_the_table(machine: type[Machine]) -> None:
    machine.slower = {ANCHORS[2].name: 1.15}
    check = check_table(SPACE, TABLE, LocalDevice())
    assert check.shifts[ANCHORS[2].name] > MAX_SHIFT
    assert check.reason is not None
    assert ANCHORS[2].name in check.reason
    with pytest.raises(PredictorError, match=r"does not hold any more: anchor .* --fresh"):
        reanchored(TABLE, check)


@pytest.mark.parametrize(("noise_floor", "holds"), [(0.004, False), (0.02, True)])
def test_networks_that_changed_break_it_beyond_its_noise(
    machine: type[Machine], noise_floor: float, holds: bool
) -> None:
    machine.slower = dict.fromkeys(NAMES[3:20], 1.03)
    assert TABLE.validation is not None
    table = replace(TABLE, validation=replace(TABLE.validation, noise_floor=noise_floor))
    check = check_table(SPACE, table, LocalDevice())
    assert check.change == pytest.approx(0.03)
    assert (check.reason is None) is holds


def test_a_table_without_other_networks_is_checked_by_its_anchors(machine: type[Machine]) -> None:
    check = check_table(SPACE, replace(TABLE, models=ANCHORS, validation=None), LocalDevice())
    assert (check.networks, check.reason) == (0, None)


def test_another_machine_and_a_busy_one_and_a_table_without_anchors(machine: type[Machine]) -> None:
    machine.refused = "the machine is busy"
    with pytest.raises(PredictorError, match="all 11 networks were refused: the machine is busy"):
        check_table(SPACE, TABLE, LocalDevice())
    machine.fingerprint = {"processor": "another"}
    with pytest.raises(TableError, match="processor is 'this one' in the table, 'another' wanted"):
        check_table(SPACE, TABLE, LocalDevice())
    with pytest.raises(PredictorError, match="has no anchors"):
        check_table(SPACE, replace(TABLE, models=()), LocalDevice())
