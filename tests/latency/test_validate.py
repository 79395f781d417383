from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import PredictorError
from hwnas.latency import unseen_session
from hwnas.latency.index import BlockIndex
from hwnas.latency.measure import Measured
from hwnas.latency.predict import TablePredictor
from hwnas.latency.unseen import unseen_archs
from hwnas.latency.unseen_session import AGAIN, FIRST, JOURNAL, NODES, ValidateConfig
from hwnas.latency.validate import RESULT, validate
from hwnas.report.validation_figures import agreement_figure
from hwnas.space import Arch, format_arch, parse_arch
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.validation import TableValidation
from hwprof.client import AgentClient
from hwprof.devices.local import LocalDevice
from hwprof.errors import DeviceError, TableError
from hwprof.table import LatencyTable, Model, Row, Validation
from hwprof.target import Plan, Target

ARGUMENTS: dict[str, Any] = {
    "resolutions": (16, 24),
    "num_classes": 10,
    "in_channels": 1,
    "stem_width": 8,
    "stage_widths": (8, 16),
    "stage_strides": (2, 2),
    "se": (False, True),
    "activations": ("relu", "hardswish"),
    "depths": (1, 2),
    "kernels": (3, 5),
    "expands": (2, 3),
    "head_widths": (32, 32),
}
SPACE = MobileNetV3Space(**ARGUMENTS)
INDEX = BlockIndex(SPACE)
LAX = Plan(sweeps=3, max_sweeps=3, max_runs=3, visit_ms=0.5, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)
CONFIG = ValidateConfig(networks=40, seed=0)
GROUP = 8


def make_table(held_out: int = 24, noise: float = 0.01, space: MobileNetV3Space = SPACE) -> LatencyTable:
    """A table whose held-out networks were measured with that much noise."""
    index, rng = BlockIndex(space), np.random.default_rng(7)
    rows = {
        key: Row(float(ms), 0.01, 3, profiled_ms=float(1.3 * ms))
        for key, ms in zip(index.keys, rng.uniform(0.1, 1, len(index.keys)), strict=True)
    }
    bare = LatencyTable(Target(), {"cpu": "fake"}, {"created": "2025-01-31"}, 0.1, (), None, rows)
    archs = np.unique(space.sample(500, rng), axis=0)
    archs = rng.permutation(archs)[: held_out + 3]
    ms = TablePredictor(space, bare).predict_ms(archs)
    roles = ["anchor"] * 3 + ["held-out"] * held_out
    models = tuple(
        Model(format_arch(arch), role, float(one * np.exp(rng.normal(0, noise))), 0.01, float(one))
        for arch, role, one in zip(archs, roles, ms, strict=True)
    )
    return replace(bare, models=models, validation=Validation(held_out, noise, 3 * noise, noise))


TABLE = make_table()


@dataclass
class World:
    """A machine on which networks take what a table says, times `factor`, noise, and `slow` for each of its blocks."""

    table: LatencyTable = TABLE
    factor: float = 1.0
    noise: float = 0.01
    slow: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    dies_at: int | None = None
    calls: list[list[str]] = field(default_factory=list)
    profiled: list[list[str]] = field(default_factory=list)
    profile_fails: str | None = None

    def true_ms(self, archs: Any) -> np.ndarray:
        rows = {key: replace(row, ms=row.ms * self.slow.get(key, 1.0)) for key, row in self.table.rows.items()}
        truth = replace(self.table, rows=rows, models=())  # its networks are those of the table, not of this world
        return self.factor * TablePredictor(SPACE, truth).predict_ms(archs)

    def measure_files(self, files: dict[str, Path], *_: Any, plan: Plan) -> dict[str, Measured]:
        if self.dies_at == len(self.calls):
            raise DeviceError("the agent on local ended (exit code -9)")
        assert all(path.exists() for path in files.values())
        self.calls.append(list(files))
        # What is measured depends on the network and the session alone, so that a restart changes nothing.
        session = sum(name in call for call in self.calls for name in list(files)[:1])
        found = {}
        for name, ms in zip(files, self.true_ms(np.array([parse_arch(name) for name in files])), strict=True):
            rng = np.random.default_rng([session, *parse_arch(name)])
            one = float(ms * np.exp(rng.normal(0, self.noise)))
            refused = self.reasons.get(name) if session == 1 else None
            value = float("nan") if refused else one
            found[name] = Measured(name, value, 0.98 * value, 1.02 * value, one, 0.03, refused)
        return found

    def profile_networks(self, archs: Sequence[Arch], *_: Any) -> dict[Arch, dict[int, float] | str]:
        self.profiled.append([format_arch(arch) for arch in archs])
        times: dict[Arch, dict[int, float] | str] = {}
        for arch in archs:
            numbers = INDEX.numbers(np.array([arch]))[0]
            keys = {place: INDEX.keys[number] for place, number in enumerate(numbers) if number >= 0}
            rows = self.table.rows
            times[arch] = self.profile_fails or {
                place: 1.1 * rows[key].profiled_ms * self.slow.get(key, 1.0) for place, key in keys.items()
            }
        return times


def touched(path: Path) -> Path:
    path.touch()
    return path


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(unseen_session, "measure_files", made.measure_files)
    monkeypatch.setattr(unseen_session, "profile_networks", made.profile_networks)
    monkeypatch.setattr(unseen_session, "GROUP", GROUP)
    monkeypatch.setattr(unseen_session, "write_arch", lambda space, arch, target, stem: touched(stem))
    return made


def run(folder: Path, config: ValidateConfig = CONFIG, table: LatencyTable = TABLE, **options: Any) -> TableValidation:
    return validate(SPACE, table, TablePredictor(SPACE, table), LocalDevice(), folder, config, **options)


def test_a_good_table_holds(world: World, tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    result = run(tmp_path, source="table.json", progress=lambda *call: stages.append(call))
    assert (result.judgement, len(result.measured), result.refused) == ("holds", 40, ())
    assert result.agreement is not None
    assert result.agreement.mean_error < 0.02
    assert 0.003 < result.agreement.noise_floor < 0.02
    assert result.interval is not None
    assert result.upper is not None
    assert (result.interval.networks, result.interval.calibrated) == (40, 24)
    assert result.anchor_drift == pytest.approx(0.03)
    assert set(result.by_draw) == {"uniform", "spread"}
    assert result.promise is not None
    assert result.table_created == "2025-01-31"
    assert stages[0] == (FIRST, 0, 40)
    assert (FIRST, 40, 40) in stages
    assert (AGAIN, 40, 40) in stages
    # All is in one file, and nothing else is left.
    written = TableValidation.from_json((tmp_path / RESULT).read_text())
    assert written == result
    assert {path.name for path in tmp_path.iterdir()} - {RESULT} <= {f"{JOURNAL}.lock", f".{JOURNAL}.lock"}


def test_a_table_that_knows_of_searched_networks_is_validated_on_such(world: World, tmp_path: Path) -> None:
    assert TABLE.validation is not None
    table = replace(TABLE, validation=replace(TABLE.validation, searched_error=0.04))
    result = run(tmp_path, table=table)
    kinds = Counter(network.drawn for network in result.networks)
    assert kinds == {"searched": 13, "spread": 13, "uniform": 14}
    assert set(result.by_draw) == set(kinds)
    assert result.promise is not None
    assert result.promise.mean_error == pytest.approx((13 * 0.04 + 27 * TABLE.validation.mean_error) / 40)
    assert "searched networks" in str(agreement_figure(result))


def test_a_biased_table_is_told(world: World, tmp_path: Path) -> None:
    world.factor = 1 / 1.1
    result = run(tmp_path)
    assert result.judgement == "biased"
    assert result.agreement is not None
    assert result.agreement.bias == pytest.approx(0.1, abs=0.01)
    assert "biased by +" in result.verdict


def test_a_block_that_became_slow_is_named(world: World, tmp_path: Path) -> None:
    archs, _ = unseen_archs(SPACE, TABLE, CONFIG.networks, CONFIG.seed)
    present = (INDEX.counts(archs) > 0).sum(axis=0)
    slow = INDEX.keys[int(np.argmin(np.abs(present - 10)))]
    world.slow = {slow: 4.0}
    result = run(tmp_path)
    assert result.judgement == "does not hold"
    assert len(result.worst) == CONFIG.worst
    for worst in result.worst:
        assert worst.blocks[0].key == slow
        # The profiler takes 10% more than it did, which the anchors show and no block is blamed for.
        assert worst.explained == pytest.approx(1.0, abs=0.2)
        assert worst.error < -0.05
    assert result.systematic[0].name == slow
    # The row is a quarter of what the block takes: three times itself are missing.
    assert result.systematic[0].error < -0.5
    anchors = [anchor.name for anchor in TABLE.anchors]
    assert world.profiled == [[*(worst.arch for worst in result.worst), *anchors]]


def test_what_cannot_be_profiled_says_why(world: World, tmp_path: Path) -> None:
    world.factor, world.profile_fails = 1.3, "the runtime gives no times of single nodes"
    result = run(tmp_path)
    assert {worst.not_profiled for worst in result.worst} == {world.profile_fails}
    assert all(worst.explained is None and worst.blocks == () for worst in result.worst)


def test_noise_is_not_explained_by_blocks(world: World, tmp_path: Path) -> None:
    world.noise = 0.0
    assert run(tmp_path).worst == ()
    assert world.profiled == []


def test_refused_networks_are_listed_with_their_reasons(world: World, tmp_path: Path) -> None:
    archs, _ = unseen_archs(SPACE, TABLE, CONFIG.networks, CONFIG.seed)
    bad = [format_arch(arch) for arch in archs[[3, 20]]]
    world.reasons = dict.fromkeys(bad, "the machine is busy")
    result = run(tmp_path)
    assert [network.arch for network in result.refused] == bad
    assert len(result.networks) == 40
    assert len(result.measured) == 38
    assert "2 not measured: the machine is busy" in result.notes
    # What was refused is not measured a second time: there is nothing to compare.
    assert all(network.again_ms is None for network in result.refused)
    assert "NaN" not in (tmp_path / RESULT).read_text()


def test_nothing_measured_is_no_verdict(world: World, tmp_path: Path) -> None:
    archs, _ = unseen_archs(SPACE, TABLE, CONFIG.networks, CONFIG.seed)
    world.reasons = {format_arch(arch): "the machine is busy" for arch in archs}
    result = run(tmp_path)
    assert (result.judgement, result.agreement, result.measured) == ("not judged", None, ())
    assert (result.worst, result.systematic, result.interval, result.upper) == ((), (), None, None)
    assert "40 not measured: the machine is busy" in result.notes


def test_without_a_second_session_there_is_no_floor(world: World, tmp_path: Path) -> None:
    result = run(tmp_path, replace(CONFIG, again=False))
    assert len(world.calls) == 40 // GROUP
    assert result.agreement is not None
    assert (result.agreement.noise_floor, result.agreement.repeated) == (None, 0)


@pytest.mark.parametrize("dies_at", [0, 2, 7])
def test_a_device_that_dies_loses_nothing_measured(world: World, tmp_path: Path, dies_at: int) -> None:
    wanted = run(tmp_path / "whole")
    world.calls.clear()
    world.dies_at = dies_at
    done = dies_at % (40 // GROUP) * GROUP
    with pytest.raises(DeviceError, match=rf"exit code -9\); {done} of 40 networks of this session are saved"):
        run(tmp_path / "cut")
    assert not (tmp_path / "cut" / RESULT).exists()
    world.dies_at = None
    found = run(tmp_path / "cut")
    assert found.networks == wanted.networks
    assert found.agreement == wanted.agreement
    assert len(world.calls) == 2 * 40 // GROUP


def test_the_journal_stays_until_all_is_written(world: World, tmp_path: Path) -> None:
    def full_disk(result: TableValidation) -> None:
        assert result.judgement == "holds"
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        run(tmp_path, publish=full_disk)
    measured = len(world.calls)
    run(tmp_path)
    assert len(world.calls) == measured


def test_measurements_of_another_validation_are_not_mixed_in(world: World, tmp_path: Path) -> None:
    world.dies_at = 2
    with pytest.raises(DeviceError):
        run(tmp_path)
    world.dies_at = None
    for config, table in ((replace(CONFIG, seed=1), TABLE), (CONFIG, replace(TABLE, intercept_ms=0.2))):
        with pytest.raises(TableError, match="unfinished measurements of something else"):
            run(tmp_path, config, table)
    assert run(tmp_path).judgement == "holds"


def test_a_table_without_held_out_networks_has_no_bounds(world: World, tmp_path: Path) -> None:
    result = run(tmp_path, table=make_table(held_out=0))
    assert (result.interval, result.upper) == (None, None)
    assert {note.partition(":")[0] for note in result.notes} == {"no 90% interval", "no 95% upper bound"}
    assert result.judgement == "holds"
    few = run(tmp_path, table=make_table(held_out=12))
    assert few.interval is not None
    assert few.upper is None


def test_a_table_without_anchors_cannot_be_validated(world: World, tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match=r"no anchors \(imported tables have none\)"):
        run(tmp_path, table=replace(TABLE, models=TABLE.models[3:]))
    assert world.calls == []


def test_networks_are_unseen_and_the_seed_s(world: World) -> None:
    archs, drawn = unseen_archs(SPACE, TABLE, 60, 0)
    assert (drawn.count("spread"), drawn.count("uniform")) == (30, 30)
    names = {format_arch(arch) for arch in archs}
    assert len(names) == 60
    assert not names & {model.name for model in TABLE.models}
    np.testing.assert_array_equal(SPACE.canonical(archs), archs)
    np.testing.assert_array_equal(unseen_archs(SPACE, TABLE, 60, 0)[0], archs)
    assert not np.array_equal(unseen_archs(SPACE, TABLE, 60, 1)[0], archs)
    # The spread ones reach further than the uniform ones.
    levels = archs.mean(axis=1)
    assert np.std(levels[:30]) > np.std(levels[30:])


def test_a_small_space_gives_what_it_has(world: World, tmp_path: Path) -> None:
    tiny = MobileNetV3Space(**{**ARGUMENTS, "resolutions": (16,), "depths": (1,)})
    every = np.unique(tiny.canonical(np.indices(tuple(tiny.cardinalities)).reshape(len(tiny.slots), -1).T), axis=0)
    assert len(every) == 16
    table = make_table(held_out=5, space=tiny)
    archs, drawn = unseen_archs(tiny, table, 60, 0)
    seen = {model.name for model in table.models}
    assert {format_arch(arch) for arch in archs} == {format_arch(arch) for arch in every} - seen
    assert len(drawn) == len(archs) == 8
    all_seen = replace(table, models=(*table.models, *(Model(format_arch(a), "fit", 1.0, 0.0) for a in archs)))
    with pytest.raises(PredictorError, match="seen every network"):
        unseen_archs(tiny, all_seen, 60, 0)


def test_models_of_elsewhere_are_no_networks_of_the_space() -> None:
    foreign = replace(TABLE, models=(*TABLE.models, Model("ofa-note10", "fit", 1.0, 0.0)))
    np.testing.assert_array_equal(unseen_archs(SPACE, foreign, 10, 0)[0], unseen_archs(SPACE, TABLE, 10, 0)[0])


@pytest.mark.parametrize("options", [{"networks": 0}, {"seed": -1}, {"worst": -1}])
def test_bad_configurations_are_told(options: dict[str, int]) -> None:
    with pytest.raises(PredictorError, match="must be at least"):
        ValidateConfig(**options)


def test_this_machine_is_measured_in_earnest(tmp_path: Path) -> None:
    """ONNX Runtime, agents and files as they are: nothing is judged but that all of it fits together."""
    with AgentClient(LocalDevice(), Target()) as client:
        table = replace(TABLE, fingerprint=client.fingerprint)
    result = run(tmp_path, ValidateConfig(networks=4, worst=2, plan=LAX), table)
    assert len(result.measured) == 4
    assert all(network.again_ms for network in result.networks)
    # The table is made up, so its anchors are nothing like this machine's, and neither is any network.
    assert result.anchor_drift is not None
    assert result.anchor_drift < -0.5
    assert result.seconds > 0
    for worst in result.worst:
        assert worst.not_profiled is None
        assert worst.blocks
    assert json.loads((tmp_path / RESULT).read_text())["schema"] == "hwnas-table-validation"


def test_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="another target"):
        run(tmp_path, ValidateConfig(networks=2, plan=LAX))
    assert not (tmp_path / RESULT).exists()


def test_a_result_that_was_tampered_with_is_refused(world: World, tmp_path: Path) -> None:
    text = run(tmp_path).to_json()
    for wrong, right in (('"holds"', '"perfect"'), ('"seed": 0', '"seed": null'), ('"rows": ', '"extra": 1, "rows": ')):
        assert wrong in text
        with pytest.raises(PredictorError, match="cannot be used"):
            TableValidation.from_json(text.replace(wrong, right))
    result = TableValidation.from_json(text)
    assert result.agreement is not None
    broken = replace(result, agreement=replace(result.agreement, mean_error=float("nan")))
    with pytest.raises(PredictorError, match="agreement"):
        broken.to_json()


def test_phases_are_journaled_as_they_come(world: World, tmp_path: Path) -> None:
    seen: list[str] = []

    def publish(result: TableValidation) -> None:
        lines = (tmp_path / JOURNAL).read_text().splitlines()
        seen.extend(json.loads(line)["phase"] for line in lines[1:])

    world.factor = 1.3
    run(tmp_path, publish=publish)
    assert seen == [FIRST] * 5 + [AGAIN] * 5 + [NODES]
