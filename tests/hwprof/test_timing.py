from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import Machine

from hwprof.target import Plan
from hwprof.timing import (
    GroupTiming,
    Visit,
    geometric_mean,
    interquartile_mean,
    refusal,
    robust_spread,
    standard_error,
    time_group,
)

PLAN = Plan(sweeps=5, max_sweeps=9, warmup_runs=1, min_runs=3, max_runs=4, visit_ms=5.0)
positive = st.floats(1e-3, 1e3)


def group_of(machine: Machine, plan: Plan = PLAN, **ms: float) -> GroupTiming:
    """A measured group: `ms` gives each model's time; two anchors take 1 and 4 ms, so their scale is 2 ms."""
    models = {name: machine.session(name, value) for name, value in ms.items()}
    anchors = {name: machine.session(name, value) for name, value in (("small", 1.0), ("large", 4.0))}
    return time_group(models, anchors, plan, clock=machine.clock)


def visits(*ms: float) -> list[Visit]:
    return [Visit(value, value, False, 3, 1) for value in ms]


def timed(times: Sequence[float], anchor_ms: Sequence[float]) -> GroupTiming:
    return GroupTiming({"model": visits(*times)}, ("anchor",), list(anchor_ms))


def test_a_steady_machine_gives_the_exact_ratio() -> None:
    timing = group_of(Machine(), model=3.0).timing("model", PLAN)
    assert timing.ratio == pytest.approx(1.5)
    assert timing.wall_ms == pytest.approx(3.0)
    assert (timing.standard_error, timing.spread, timing.interrupted, timing.refused) == (0, 0, 0, None)
    assert len(timing.ratios) == PLAN.sweeps


@pytest.mark.parametrize(
    "speed",
    [
        pytest.param(lambda seconds: 1 / (1 + seconds), id="slows down steadily"),
        pytest.param(lambda seconds: 1 + 0.4 * math.sin(2 * seconds), id="swings"),
        pytest.param(lambda seconds: 0.6 if seconds > 0.15 else 1.0, id="is throttled half way"),
    ],
)
def test_ratios_survive_a_speed_that_ruins_raw_medians(speed) -> None:
    plan = Plan(sweeps=9, max_sweeps=9, max_drift=10, max_runs=4)
    timing = group_of(Machine(speed), plan, model=3.0, other=0.7).timing("model", plan)
    assert timing.ratio == pytest.approx(1.5, rel=0.05)
    assert abs(timing.wall_ms / 3.0 - 1) > 0.1


def test_every_sweep_visits_each_once_in_a_new_order() -> None:
    machine, names = Machine(), "abcdef"
    plan = Plan(sweeps=9, max_sweeps=9, warmup_runs=1, min_runs=2, max_runs=2)
    sessions = {name: machine.session(name, 1.0) for name in names}
    models = {name: sessions[name] for name in "abcd"}
    time_group(models, {name: sessions[name] for name in "ef"}, plan, clock=machine.clock)
    runs = 3 * len(names)
    sweeps = [machine.visited[start : start + runs] for start in range(0, len(machine.visited), runs)]
    assert [sorted(sweep) for sweep in sweeps] == [sorted(3 * names)] * plan.sweeps
    assert all(sweep[::3] == sweep[1::3] == sweep[2::3] for sweep in sweeps)
    assert len({tuple(sweep) for sweep in sweeps}) > plan.sweeps - 2


def test_the_seed_decides_the_order() -> None:
    def order(seed: int) -> list[str]:
        machine = Machine()
        sessions = {name: machine.session(name, 1.0) for name in "abcdef"}
        time_group(sessions, {}, PLAN, clock=machine.clock, seed=seed)
        return machine.visited

    assert order(1) == order(1) != order(2)


def test_runs_of_a_visit_keep_their_bounds() -> None:
    plan = Plan(sweeps=3, max_sweeps=3, warmup_runs=2, min_runs=3, max_runs=10, visit_ms=5.0)
    group = group_of(Machine(), plan, slow=50.0, middle=1.0, fast=0.01)
    assert {name: {visit.runs for visit in group.visits[name]} for name in ("slow", "middle", "fast")} == {
        "slow": {3},
        "middle": {5},
        "fast": {10},
    }
    assert group.visits["slow"][0].warmup_runs == 2


def test_warm_up_runs_are_not_timed() -> None:
    machine = Machine()
    cold = machine.session("cold", 1.0)
    plan = Plan(sweeps=3, max_sweeps=3, warmup_runs=1, min_runs=3, max_runs=3)
    calls = iter(range(10_000))
    cold.stolen_ms = lambda: 100.0 if next(calls) % 4 == 0 else 0.0
    group = time_group({"cold": cold}, {"anchor": machine.session("anchor", 1.0)}, plan, clock=machine.clock)
    assert group.timing("cold", plan).wall_ms == pytest.approx(1.0)


def test_sweeps_stop_when_numbers_are_good_and_go_on_when_not() -> None:
    generator = random.Random(0)
    done: list[int] = []
    quiet = Machine()
    time_group({"m": quiet.session("m", 1.0)}, {}, PLAN, clock=quiet.clock, progress=done.append)
    assert done == [1, 2, 3, 4, 5]
    busy = Machine(speed=lambda _: generator.uniform(0.2, 2.0))
    plan = Plan(sweeps=5, max_sweeps=9, min_runs=1, max_runs=1, max_standard_error=0.001)
    group = time_group({"m": busy.session("m", 1.0)}, {}, plan, clock=busy.clock, progress=done.append)
    assert done[5:] == list(range(1, 10))
    assert "machine is" in (group.timing("m", plan).refused or "")


def test_an_early_disturbance_is_outvoted_by_more_sweeps() -> None:
    machine = Machine()
    disturbed = machine.session("m", 1.0)
    calls = iter(range(10_000))
    machine.speed = lambda _: 0.5 if next(calls) < 12 else 1.0
    plan = Plan(sweeps=3, max_sweeps=21, min_runs=3, max_runs=3, max_spread=0.05, max_standard_error=0.01)
    anchor = machine.session("anchor", 1.0)
    group = time_group({"m": disturbed}, {"anchor": anchor}, plan, clock=machine.clock)
    assert group.timing("m", plan).refused is None
    assert group.timing("m", plan).ratio == pytest.approx(1.0, rel=0.05)


def test_interrupted_visits_use_cpu_time() -> None:
    machine = Machine()
    robbed = machine.session("robbed", 2.0, stolen_ms=lambda: 1.0)
    timing = time_group({"robbed": robbed}, {"a": machine.session("a", 1.0)}, PLAN, clock=machine.clock).timing(
        "robbed", PLAN
    )
    assert timing.ratio == pytest.approx(2.0)
    assert timing.wall_ms == pytest.approx(3.0)
    assert timing.interrupted == 1.0


@pytest.mark.parametrize(("stolen_ms", "interrupted"), [(0.09, 0.0), (0.11, 1.0)])
def test_five_percent_decide_what_an_interruption_is(stolen_ms: float, interrupted: float) -> None:
    machine = Machine()
    session = machine.session("m", 2.0, stolen_ms=lambda: stolen_ms)
    timing = time_group({"m": session}, {}, PLAN, clock=machine.clock).timing("m", PLAN)
    assert timing.interrupted == interrupted
    assert timing.ratio == pytest.approx(2.0 if interrupted else 2.0 + stolen_ms)


def test_without_a_cpu_clock_wall_time_counts() -> None:
    machine = Machine()
    session = machine.session("m", 2.0, stolen_ms=lambda: 1.0)
    timing = time_group({"m": session}, {}, PLAN, clock=machine.gpu_clock).timing("m", PLAN)
    assert (timing.ratio, timing.interrupted) == (pytest.approx(3.0), 0.0)


def test_a_cpu_clock_too_coarse_to_see_a_run_is_not_believed() -> None:
    machine = Machine()
    session = machine.session("m", 2.0)
    clock = machine.clock
    coarse = type(clock)(wall=clock.wall, cpu=lambda: round(machine.cpu) // 15_600_000 * 15_600_000)
    timing = time_group({"m": session}, {}, PLAN, clock=coarse).timing("m", PLAN)
    assert (timing.ratio, timing.refused) == (pytest.approx(2.0), None)


@pytest.mark.parametrize("jump_ms", [-5000.0, 5000.0])
def test_one_jump_of_the_clock_changes_nothing(jump_ms: float) -> None:
    machine = Machine()
    calls = iter(range(10_000))
    session = machine.session("m", 2.0, stolen_ms=lambda: jump_ms if next(calls) == 6 else 0.0)
    group = time_group({"m": session}, {"a": machine.session("a", 1.0)}, PLAN, clock=machine.clock)
    assert group.timing("m", PLAN).ratio == pytest.approx(2.0)
    assert group.timing("m", PLAN).refused is None


@pytest.mark.parametrize("broken", ["m", "a"])
def test_a_clock_that_stands_still_is_refused(broken: str) -> None:
    machine = Machine()
    sessions = {name: machine.session(name, 0.0 if name == broken else 1.0) for name in "ma"}
    group = time_group({"m": sessions["m"]}, {"a": sessions["a"]}, PLAN, clock=machine.clock)
    timing = group.timing("m", PLAN)
    assert "timer or the run is broken" in (timing.refused or "")
    assert len(group.anchor_ms) == PLAN.max_sweeps


@pytest.mark.parametrize("zero", ["times", "anchors"])
def test_a_single_zero_time_is_refused(zero: str) -> None:
    times, anchors = [1.0] * 7, [1.0] * 7
    (times if zero == "times" else anchors)[3] = 0.0
    assert timed([1.0] * 7, [1.0] * 7).timing("model", PLAN).refused is None
    assert "the time is 0.0" in (timed(times, anchors).timing("model", PLAN).refused or "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"ratio": 5e-324}, None),
        ({"ratio": 0.0}, "the time is 0.0"),
        ({"ratio": -1.0}, "the time is -1.0"),
        ({"ratio": math.nan}, "the time is nan"),
        ({"ratio": math.inf}, "the time is inf"),
        ({"drift": 0.10}, None),
        ({"drift": 0.1001}, "the anchors drifted by 10.0%"),
        ({"drift": math.inf}, "the anchors drifted"),
        ({"spread": 0.10}, None),
        ({"spread": 0.1001}, "the sweeps spread by 10.0%"),
        ({"error": 0.02}, None),
        ({"error": 0.0201}, "the standard error is 2.0%"),
    ],
)
def test_each_rule_of_refusal_just_inside_and_just_outside(change: dict[str, float], reason: str | None) -> None:
    values = {"ratio": 1.0, "error": 0.0, "spread": 0.0, "drift": 0.0, **change}
    refused = refusal(**values, plan=Plan())
    assert refused is None if reason is None else refused is not None and refused.startswith(reason)


@pytest.mark.parametrize(("second", "refused"), [(1.09, False), (1.11, True), (0.91, False), (0.89, True)])
def test_drift_is_from_the_first_to_the_second_half(second: float, refused: bool) -> None:
    anchor_ms = [1.0, 1.0, 1.0, second, second, second]
    group = timed([3 * value for value in anchor_ms], anchor_ms)
    assert group.drift() == pytest.approx(abs(second - 1))
    assert (group.timing("model", PLAN).refused is not None) == refused


def test_without_models_a_group_of_anchors_ends_at_the_fewest_sweeps() -> None:
    machine = Machine()
    assert len(time_group({}, {"a": machine.session("a", 1.0)}, PLAN, clock=machine.clock).anchor_ms) == PLAN.sweeps


@given(st.lists(positive, min_size=3, max_size=21), positive)
def test_statistics_do_not_depend_on_the_unit(values: list[float], unit: float) -> None:
    scaled = [unit * value for value in values]
    assert robust_spread(scaled) == pytest.approx(robust_spread(values), rel=1e-6, abs=1e-9)
    assert standard_error(scaled, 50) == pytest.approx(standard_error(values, 50), rel=1e-6, abs=1e-9)
    assert interquartile_mean(scaled) == pytest.approx(unit * interquartile_mean(values))
    assert geometric_mean(scaled) == pytest.approx(unit * geometric_mean(values))


@given(st.lists(positive, min_size=1, max_size=21), st.randoms())
def test_means_lie_between_the_extremes_in_any_order(values: list[float], generator: random.Random) -> None:
    shuffled = generator.sample(values, len(values))
    for mean in (interquartile_mean, geometric_mean):
        assert min(values) * (1 - 1e-9) <= mean(values) <= max(values) * (1 + 1e-9)
        assert mean(shuffled) == pytest.approx(mean(values))


@given(st.lists(positive, min_size=8, max_size=20), st.floats(1e4, 1e9))
def test_one_outlier_hardly_moves_the_interquartile_mean(values: list[float], outlier: float) -> None:
    assert interquartile_mean([*values[1:], outlier]) <= max(values)


@given(positive, st.integers(3, 21))
def test_equal_sweeps_have_no_spread_and_no_error(value: float, n: int) -> None:
    assert robust_spread([value] * n) == 0
    assert standard_error([value] * n, 20) == 0


def test_the_bootstrap_knows_the_error_of_a_median() -> None:
    """Standard error of the median of n normal values: 1.253 sigma / sqrt(n)."""
    generator = random.Random(3)
    errors = [standard_error([generator.gauss(1.0, 0.05) for _ in range(15)]) for _ in range(60)]
    assert statistics.median(errors) == pytest.approx(1.253 * 0.05 / math.sqrt(15), rel=0.25)


def test_the_robust_spread_is_a_standard_deviation_for_normal_values() -> None:
    generator = random.Random(4)
    assert robust_spread([generator.gauss(10.0, 0.5) for _ in range(20_000)]) == pytest.approx(0.05, rel=0.03)


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
def test_values_that_are_no_times_have_infinite_spread(values: list[float]) -> None:
    assert math.isinf(robust_spread(values))
    assert math.isinf(standard_error(values))
    assert geometric_mean(values) == 0.0
