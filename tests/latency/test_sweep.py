from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import PredictorError
from hwnas.graphs import write_arch
from hwnas.latency.index import BlockIndex
from hwnas.latency.predict import TablePredictor
from hwnas.latency.selection import SweepConfig, select_networks
from hwnas.latency.session import AGAIN, NODES, WHOLE
from hwnas.latency.sweep import profile
from hwnas.space import parse_arch
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwprof.client import AgentClient, Group
from hwprof.devices.local import LocalDevice
from hwprof.errors import DeviceError, TableError
from hwprof.journal import Journal
from hwprof.table import HELD_OUT, read_table
from hwprof.target import Plan, Target

ARGUMENTS: dict[str, Any] = {
    "resolutions": (16,),
    "num_classes": 10,
    "in_channels": 1,
    "stem_width": 8,
    "stage_widths": (8, 16),
    "stage_strides": (2, 2),
    "se": (False, True),
    "activations": ("relu", "hardswish"),
    "depths": (1, 2),
    "kernels": (3,),
    "expands": (2, 3),
    "head_widths": (32, 32),
}
LIMITS = {"max_standard_error": 1e9, "max_spread": 1e9, "max_drift": 1e9}
PLAN = Plan(sweeps=3, max_sweeps=3, max_runs=3, visit_ms=0.5, **LIMITS)
CONFIG = SweepConfig(fit=4, held_out=3, searched=0, group=3, plan=PLAN)


@pytest.fixture(scope="module")
def space() -> MobileNetV3Space:
    return MobileNetV3Space(**ARGUMENTS)


@dataclass
class Spy:
    """Counts the networks that a client is asked to measure, and fails or changes results on demand."""

    measured: list[str] = field(default_factory=list)
    groups: list[tuple[int, int]] = field(default_factory=list)
    change: Any = lambda self, group, call: group


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy, real = Spy(), AgentClient.measure

    def measure(self, models, anchors, plan, **options) -> Group:
        spy.measured += models
        spy.groups.append((len(models), len(anchors)))
        return spy.change(self, real(self, models, anchors, plan, **options), len(spy.groups))

    monkeypatch.setattr(AgentClient, "measure", measure)
    return spy


def run(space: MobileNetV3Space, folder: Path, config: SweepConfig = CONFIG, **options: Any):
    return profile(space, Target(), {"local": LocalDevice()}, folder / "table.json", config, **options)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "table.journal").read_text().splitlines()][1:]


def test_a_profile_measures_every_block_and_validates(space: MobileNetV3Space, tmp_path: Path, spy: Spy) -> None:
    stages: list[tuple[str, int, int]] = []
    table = run(space, tmp_path, progress=lambda *call: stages.append(call))
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
    read = read_table(tmp_path / "table.json")
    assert read.rows.keys() == table.rows.keys() == set(BlockIndex(space).keys)
    assert {row.origin for row in read.rows.values()} == {"measured"}
    roles = Counter(model.role for model in read.models)
    assert roles == {"anchor": 5, "fit": 4, "held-out": 3}
    assert read.validation is not None
    assert (read.validation.models, read.intercept_ms >= 0) == (3, True)
    assert all(model.again_ms for model in read.models if model.role == "held-out")
    assert read.provenance["space"]["resolutions"] == [16]
    assert read.provenance["device_seconds"] >= 0
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == [NODES, WHOLE, AGAIN]
    # Seven networks in groups of at most three, each beside the anchors.
    assert [done for stage, done, _ in stages if stage == WHOLE] == [0, 2, 4, 7]
    assert {anchors for _, anchors in spy.groups} == {5}
    assert (TablePredictor(space, read).predict_ms(space.sample(5, np.random.default_rng(0))) > 0).all()


def test_quick_profiles_estimate_the_rest(space: MobileNetV3Space, tmp_path: Path) -> None:
    # A seed whose two networks do not hold every block, but every kind of operator.
    table = run(space, tmp_path, replace(CONFIG, networks=2, seed=1))
    origins = Counter(row.origin for row in read_table(tmp_path / "table.json").rows.values())
    assert origins["estimated"] > 0
    assert origins["measured"] > origins["estimated"]
    assert all((row.count == 0) == (row.origin == "estimated") for row in table.rows.values())


def test_the_seed_alone_chooses_the_networks(space: MobileNetV3Space) -> None:
    index = BlockIndex(space)
    for networks in (0, 3):
        config = replace(CONFIG, networks=networks)
        one, two = select_networks(space, index, config), select_networks(space, index, config)
        other = select_networks(space, index, replace(config, seed=1))
        for name in ("profiled", "anchors", "fit", "held_out"):
            assert np.array_equal(getattr(one, name), getattr(two, name))
        assert not np.array_equal(one.held_out, other.held_out)
        whole = [tuple(arch) for part in (one.anchors, one.fit, one.held_out) for arch in part]
        assert len(whole) == len(set(whole))


def test_a_space_too_small_to_validate_is_told() -> None:
    tiny = MobileNetV3Space(
        **{
            **ARGUMENTS,
            "depths": (1,),
            "stage_widths": (8,),
            "stage_strides": (2,),
            "se": (False,),
            "activations": ("relu",),
        }
    )
    with pytest.raises(PredictorError, match=r"too few networks \(0 besides the anchors\)"):
        select_networks(tiny, BlockIndex(tiny), CONFIG)


@pytest.mark.parametrize(
    ("field", "value"), [("fit", 2), ("held_out", 1), ("searched", -1), ("group", 0), ("attempts", 0), ("networks", -1)]
)
def test_a_profile_too_small_is_told(field: str, value: int) -> None:
    with pytest.raises(PredictorError, match=rf"profile\.{field} must be at least .*, got {value}"):
        SweepConfig(**{field: value})


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, groups: int) -> Iterator[None]:
    """What profiles in here is interrupted when so many groups are in the journal."""
    real = Journal.append

    def append(journal: Journal, record: dict[str, Any]) -> None:
        real(journal, record)
        if len(journal.records) == groups:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_interrupted_profile_measures_nothing_twice(
    space: MobileNetV3Space, tmp_path: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    with interrupted(monkeypatch, stop_after):
        run(space, tmp_path)
    before = [(record["phase"], result["name"]) for record in records(tmp_path) for result in record["results"]]
    assert len(records(tmp_path)) == stop_after
    assert not (tmp_path / "table.json").exists()
    table = run(space, tmp_path)
    assert not (tmp_path / "table.journal").exists()
    held_out = [model.name for model in table.models if model.role == "held-out"]
    fit = [model.name for model in table.models if model.role == "fit"]
    selection = select_networks(space, BlockIndex(space), CONFIG)
    assert [parse_arch(name) for name in held_out] == [tuple(arch) for arch in selection.held_out]
    # Held-out networks are measured in two sessions, all others once: in both runs together.
    whole = Counter({**dict.fromkeys(fit, 1), **dict.fromkeys(held_out, 2)})
    profiled = Counter("-".join(map(str, arch)) for arch in selection.profiled)
    assert Counter(spy.measured) == whole + profiled
    assert spy.measured[: len(before)] == [name for _, name in before]


SEARCHED = replace(CONFIG, searched=8)  # rounds of 2, 3 and 3


def test_networks_that_a_search_would_choose_correct_the_table_and_validate_it(
    space: MobileNetV3Space, tmp_path: Path, spy: Spy
) -> None:
    table = run(space, tmp_path, SEARCHED)
    roles = Counter(model.role for model in table.models)
    assert (roles["anchor"], roles["held-out"]) == (5, 3)
    assert 4 < roles["fit"] <= 4 + 5  # several searches of so small a space can end at one network
    assert 0 < roles["searched"] <= 3
    assert all(model.again_ms for model in table.models if model.role in HELD_OUT)
    assert table.validation is not None
    assert table.validation.models == 3
    predictor = TablePredictor(space, table)
    searched = [model for model in table.models if model.role == "searched"]
    predicted = predictor.predict_ms(np.array([parse_arch(model.name) for model in searched]))
    errors = np.abs(predicted / [model.ms for model in searched] - 1)
    assert table.validation.searched_error == pytest.approx(errors.mean(), rel=1e-3)
    # what a round finds, the next does not look for again
    assert max(Counter(model.name for model in table.models).values()) == 1
    assert len(spy.measured) == len(table_networks(space)) + roles["fit"] - 4 + 2 * roles["searched"]


@pytest.mark.parametrize("phase", ["first round", "last round", "second session"])
def test_a_rehearsal_that_is_interrupted_measures_nothing_twice(
    space: MobileNetV3Space, tmp_path: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    config = replace(SEARCHED, group=20)  # a group each: nodes, whole networks, three rounds, the second session
    profiled = -(-len(select_networks(space, BlockIndex(space), config).profiled) // 20)
    stop_after = profiled + {"first round": 2, "last round": 4, "second session": 5}[phase]
    with interrupted(monkeypatch, stop_after):
        run(space, tmp_path, config)
    before = list(spy.measured)
    table = run(space, tmp_path, config)
    roles = Counter(model.role for model in table.models)
    assert len(spy.measured) == len(table_networks(space)) + roles["fit"] - 4 + 2 * roles["searched"]
    assert spy.measured[: len(before)] == before


def test_without_networks_of_a_search_a_table_has_none(space: MobileNetV3Space, tmp_path: Path) -> None:
    table = run(space, tmp_path, CONFIG)
    assert table.validation is not None
    assert table.validation.searched_error is None
    assert '"searched' not in (tmp_path / "table.json").read_text().split('"validation"')[1]


HOST = """
import sys
from pathlib import Path
from hwnas.latency.selection import SweepConfig
from hwnas.latency.sweep import profile
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwprof.devices.local import LocalDevice
from hwprof.target import Plan, Target
profile(MobileNetV3Space(**{arguments!r}), Target(), {{"local": LocalDevice()}}, Path({path!r}), {config!r})
"""


def test_a_killed_host_is_resumed(space: MobileNetV3Space, tmp_path: Path, spy: Spy) -> None:
    script = HOST.format(arguments=ARGUMENTS, path=str(tmp_path / "table.json"), config=CONFIG)
    journal = tmp_path / "table.journal"
    with subprocess.Popen([sys.executable, "-c", script]) as host:
        for _ in range(6000):
            if host.poll() is not None or (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
                break
            time.sleep(0.01)
        host.send_signal(signal.SIGKILL)
    # The host may have been faster than the kill; then there is a table, and nothing to resume.
    kept = (
        [result["name"] for record in records(tmp_path) for result in record["results"]] if journal.exists() else None
    )
    table = run(space, tmp_path)
    assert table.validation is not None
    if kept is not None:
        assert kept
        assert len(spy.measured) + len(kept) == len(table_networks(space))


def table_networks(space: MobileNetV3Space) -> list[Any]:
    """Every measurement of a whole profile."""
    selection = select_networks(space, BlockIndex(space), CONFIG)
    return [*selection.profiled, *selection.fit, *selection.held_out, *selection.held_out]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": replace(CONFIG, seed=7)}, "config.seed changed"),
        (
            {"config": replace(CONFIG, plan=replace(PLAN, sweeps=4, max_sweeps=4))},
            "config.plan.max_sweeps, config.plan",
        ),
        ({"space": MobileNetV3Space(**{**ARGUMENTS, "num_classes": 9})}, "space.num_classes changed"),
        ({"target": Target(optimisation="basic")}, "target.optimisation changed"),
    ],
)
def test_another_recipes_journal_is_refused(
    space: MobileNetV3Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            run(space, tmp_path)
    arguments = {"space": space, "target": Target(), "config": CONFIG, **change}
    before = (tmp_path / "table.journal").read_bytes()
    with pytest.raises(TableError, match=f"unfinished measurements of something else .*{named}"):
        profile(
            arguments["space"],
            arguments["target"],
            {"local": LocalDevice()},
            tmp_path / "table.json",
            arguments["config"],
        )
    assert (tmp_path / "table.journal").read_bytes() == before


def test_a_dying_agent_costs_one_group(space: MobileNetV3Space, tmp_path: Path, spy: Spy) -> None:
    def kill(client: AgentClient, group: Group, call: int) -> Group:
        if call == 2:
            assert client._process is not None
            client._process.kill()
            client._process.wait()
        return group

    spy.change = kill
    table = run(space, tmp_path)
    assert table.validation is not None
    assert len(spy.measured) == len(table_networks(space)) + spy.groups[2][0]


def test_a_device_that_stays_away_is_told_and_the_rest_is_kept(
    space: MobileNetV3Space, tmp_path: Path, spy: Spy
) -> None:
    def away(client: AgentClient, group: Group, call: int) -> Group:
        if call >= 2:
            raise DeviceError("the phone went to sleep")
        return group

    spy.change = away
    with pytest.raises(DeviceError, match="went to sleep"):
        run(space, tmp_path)
    assert len(records(tmp_path)) == 1
    spy.change = lambda client, group, call: group
    assert run(space, tmp_path).validation is not None


def test_what_is_always_refused_ends_with_the_reasons_and_keeps_the_journal(
    space: MobileNetV3Space, tmp_path: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("hwnas.latency.session.sleep", pauses.append)
    spy.change = lambda client, group, call: refuse(group, lambda result: not result.nodes)
    with pytest.raises(PredictorError, match=r"4 of 4 networks to fit were refused 2 times: busy\. Quieten"):
        run(space, tmp_path, replace(CONFIG, attempts=2))
    assert not (tmp_path / "table.json").exists()
    phases = Counter(record["phase"] for record in records(tmp_path))
    assert phases[WHOLE] == 6  # seven networks in groups of three, twice
    assert phases[AGAIN] == 0
    assert pauses == [1.0]


def refuse(group: Group, chosen: Any) -> Group:
    return replace(
        group, results=tuple(replace(result, refused="busy") if chosen(result) else result for result in group.results)
    )


def test_a_refused_network_is_tried_again_in_other_company(
    space: MobileNetV3Space, tmp_path: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwnas.latency.selection.LEAST_PROFILED", 0)

    def refuse_first(client: AgentClient, group: Group, call: int) -> Group:
        return refuse(group, lambda result: call in (1, 3) and result.name == group.results[0].name)

    spy.change = refuse_first
    table = run(space, tmp_path)
    assert table.provenance["refused"] == 2
    assert [entry.endswith(": busy") for entry in table.provenance["refusals"]] == [True, True]
    # Two profiled networks, one of them again; seven whole ones, the refused one again.
    assert [models for models, _ in spy.groups[:6]] == [2, 1, 2, 2, 3, 1]
    assert table.validation is not None
    assert {row.origin for row in table.rows.values()} == {"measured"}


def test_half_of_the_held_out_can_be_spared_but_not_all(space: MobileNetV3Space, tmp_path: Path, spy: Spy) -> None:
    config = replace(CONFIG, fit=20, held_out=5, group=8, attempts=1)
    selection = select_networks(space, BlockIndex(space), config)
    names = ["-".join(map(str, arch)) for arch in selection.held_out]
    spy.change = lambda client, group, call: refuse(group, lambda result: not result.nodes and result.name in names)
    with pytest.raises(PredictorError, match="5 of 5 networks to validate were refused"):
        run(space, tmp_path, config)
    spy.change = lambda client, group, call: refuse(group, lambda r: not r.nodes and r.name in names[:2])
    table = run(space, tmp_path, config)
    assert table.validation is not None
    assert table.validation.models == 3


def test_a_full_disk_ends_the_profile_and_it_goes_on_later(
    space: MobileNetV3Space, tmp_path: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left on device"):
            run(space, tmp_path)
    assert len(records(tmp_path)) == 1
    lost = spy.groups[1][0]
    assert run(space, tmp_path).validation is not None
    assert len(spy.measured) == len(table_networks(space)) + lost


BUSY = textwrap.dedent("""
    import time
    end = time.monotonic() + 2
    print("busy", flush=True)
    while time.monotonic() < end:
        sum(range(1000))
""")


def test_a_noisy_neighbour_is_seen_through_or_refused(space: MobileNetV3Space, tmp_path: Path) -> None:
    """Accepted numbers are right; how many are accepted is the machine's affair."""
    big = MobileNetV3Space(**{**ARGUMENTS, "resolutions": (64,), "stage_widths": (16, 32)})
    paths = {}
    for arch in select_networks(big, BlockIndex(big), CONFIG).anchors:
        options = tuple(int(option) for option in arch)
        paths["-".join(map(str, arch))] = write_arch(big, options, Target(), tmp_path / str(len(paths)))
    first, *others = paths.items()
    plan = Plan(sweeps=7, max_sweeps=9, max_runs=8, visit_ms=3.0)
    with AgentClient(LocalDevice(), Target()) as client:
        quiet = client.measure(dict([first]), dict(others), plan).results[0]
        neighbours = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(2)]
        try:
            for neighbour in neighbours:
                assert neighbour.stdout is not None
                neighbour.stdout.readline()
            noisy = client.measure(dict([first]), dict(others), plan).results[0]
        finally:
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.communicate()
    assert quiet.refused or noisy.refused or noisy.ratio == pytest.approx(quiet.ratio, rel=0.25)


def test_a_quick_selection_holds_every_operator_and_a_small_covering_set_is_filled_up() -> None:
    from hwnas.latency.estimate import block_features, with_unseen_operators
    from hwnas.latency.index import BlockIndex
    from hwnas.latency.selection import LEAST_PROFILED, select_networks
    from hwnas.spaces.nasbench201 import NasBench201Space

    cells = NasBench201Space(channels=4, cells=1, resolution=8)
    index = BlockIndex(cells)
    quick = select_networks(cells, index, SweepConfig(networks=4)).profiled
    known = index.counts(quick).any(axis=0)
    assert not with_unseen_operators(block_features(index.blocks), known).any()
    covering = select_networks(cells, index, SweepConfig()).profiled
    assert index.counts(covering).any(axis=0).all()
    assert len(covering) >= LEAST_PROFILED
