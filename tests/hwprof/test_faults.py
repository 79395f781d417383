"""Machines and clocks that misbehave while a group is measured: the ratio is right within its error, or refused."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import Machine

from hwprof.target import Plan
from hwprof.timing import Clock, GroupTiming, Timing, time_group

PLAN = Plan(sweeps=7, max_sweeps=15, max_runs=8)
# The model takes this many times the geometric mean of the anchors; they take 1 and 4 ms, the model 1.5 ms.
RATIO = 0.75
GROUP_MS = 7 * (1.5 + 1 + 4) * 5
REASONS = (
    "the time is",
    "the anchors drifted",
    "the sweeps spread",
    "the standard error is",
    "the clock moves in steps",
    "the CPU worked for longer",
    "the machine is busy, and its CPU clock",
)


def measured(
    machine: Machine, clock: Clock, stolen_ms: Callable[[], float] = lambda: 0.0
) -> tuple[GroupTiming, Timing]:
    """A group of one model on this machine, seen through this clock."""
    sessions = {"m": machine.session("m", 1.5, stolen_ms=stolen_ms)}
    anchors = {name: machine.session(name, ms) for name, ms in (("small", 1.0), ("large", 4.0))}
    group = time_group(sessions, anchors, PLAN, clock=clock)
    return group, group.timing("m", PLAN)


def require_right_or_refused(timing: Timing, near: float = 0.02) -> None:
    if timing.refused is None:
        assert timing.ratio == pytest.approx(RATIO, rel=3 * timing.standard_error + near)
        assert all(map(math.isfinite, (timing.ratio, timing.standard_error, timing.spread)))
    else:
        assert timing.refused.startswith(REASONS)


def noisy(seed: int, noise: float) -> Machine:
    generator = random.Random(seed)
    return Machine(speed=lambda _: math.exp(generator.gauss(0, noise)))


jumps = st.lists(
    st.tuples(
        st.floats(0, GROUP_MS),
        st.builds(lambda sign, size: sign * 10**size, st.sampled_from([-1, 1]), st.floats(-2, 7)),
    ),
    max_size=20,
)


@given(jumps, st.integers(0, 10**6), st.sampled_from([0.0, 0.003, 0.02]), st.booleans())
def test_jumps_of_the_wall_clock_give_the_right_ratio_or_a_reason(
    jumps: list[tuple[float, float]], seed: int, noise: float, has_cpu_clock: bool
) -> None:
    machine = noisy(seed, noise)
    clock = machine.faulty_clock(jumps=jumps)
    require_right_or_refused(measured(machine, clock if has_cpu_clock else Clock(clock.wall, None))[1])


def test_jumps_that_ruin_a_mean_leave_the_ratio() -> None:
    """That the property above says something: the same readings, averaged as they are, are off by half and more."""
    off, right = 0, 0
    for seed in range(20):
        generator = random.Random(seed)
        machine = noisy(seed, 0.003)
        steps = [(generator.uniform(0, GROUP_MS), generator.choice([-1, 1]) * 100.0) for _ in range(6)]
        group, timing = measured(machine, machine.faulty_clock(jumps=steps))
        clock = machine.faulty_clock(jumps=[(machine.wall * 1e-6 + at, by) for at, by in steps])
        naive = statistics.fmean(walls(machine, clock, 1.5)) / math.sqrt(
            abs(statistics.fmean(walls(machine, clock, 1.0)) * statistics.fmean(walls(machine, clock, 4.0)))
        )
        off += abs(naive / RATIO - 1) > 0.5
        right += timing.refused is None and abs(timing.ratio / RATIO - 1) < 0.02
        assert len(group.anchor_ms) >= PLAN.sweeps
    assert off >= 10
    assert right >= 15


def walls(machine: Machine, clock: Clock, ms: float, runs: int = 30) -> list[float]:
    session, times = machine.session("naive", ms), []
    for _ in range(runs):
        start = clock.wall()
        session.run()
        times.append((clock.wall() - start) * 1e-6)
    return times


@given(
    st.lists(st.tuples(st.floats(0, GROUP_MS * 1e-3), st.sampled_from([0.25, 0.5, 0.8, 1.0, 2.0])), max_size=8),
    st.integers(0, 10**6),
    st.sampled_from([0.001, 0.02]),
)
def test_frequencies_that_change_mid_group_give_the_right_ratio_or_a_reason(
    changes: list[tuple[float, float]], seed: int, noise: float
) -> None:
    generator, ordered = random.Random(seed), sorted(changes, reverse=True)
    machine = Machine(
        lambda now: next((speed for at, speed in ordered if at <= now), 1.0) * math.exp(generator.gauss(0, noise))
    )
    require_right_or_refused(measured(machine, machine.clock)[1], near=0.03)


@given(st.floats(0, GROUP_MS), st.integers(0, 10**6), st.sampled_from([0.0, 0.2]))
def test_a_cpu_clock_that_stops_gives_the_right_ratio_or_a_reason(at_ms: float, seed: int, busy: float) -> None:
    machine, generator = noisy(seed, 0.003), random.Random(seed)
    timing = measured(
        machine,
        machine.faulty_clock(cpu_stops_ms=at_ms),
        stolen_ms=lambda: generator.expovariate(1.0) if generator.random() < busy else 0.0,
    )[1]
    require_right_or_refused(timing)


@pytest.mark.parametrize("tick_ms", [0.0001, 0.001, 0.01])
def test_ticks_far_below_a_run_change_nothing(tick_ms: float) -> None:
    machine = noisy(1, 0.003)
    timing = measured(machine, machine.faulty_clock(wall_tick_ms=tick_ms, cpu_tick_ms=tick_ms))[1]
    assert timing.refused is None
    assert timing.ratio == pytest.approx(RATIO, rel=0.01)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"jumps": [(0.0, 1e12)]}, None),
        ({"jumps": [(at, -5.0) for at in range(0, 500, 3)]}, REASONS),
        ({"wall_tick_ms": 1e6}, REASONS),
        ({"cpu_stops_ms": 0.0}, None),
    ],
)
def test_what_each_fault_ends_in(fault: dict[str, Any], reason: tuple[str, ...] | None) -> None:
    machine = noisy(2, 0.003)
    timing = measured(machine, machine.faulty_clock(**fault))[1]
    if reason is None:
        assert timing.refused is None
    else:
        assert timing.refused is not None
        assert timing.refused.startswith(reason)
    require_right_or_refused(timing)


ticks = st.just(0.0) | st.floats(0.0001, 40.0)


@given(ticks, ticks, st.integers(0, 10**6), st.sampled_from([0.001, 0.02]))
def test_clocks_that_tick_coarsely_give_the_right_ratio_or_a_reason(
    wall_tick_ms: float, cpu_tick_ms: float, seed: int, noise: float
) -> None:
    """The median of readings of a coarse clock is a whole number of ticks, the same in all sweeps: wrong, and sure."""
    machine = noisy(seed, noise)
    clock = machine.faulty_clock(wall_tick_ms=wall_tick_ms, cpu_tick_ms=cpu_tick_ms)
    require_right_or_refused(measured(machine, clock)[1], near=0.03)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"wall_tick_ms": 1.0}, "the clock moves in steps of 1 ms"),
        ({"wall_tick_ms": 15.625}, "the "),
        ({"step_ms": lambda: -0.25}, "the CPU worked for longer than time passed"),
        ({"jumps": [(at, -1.0) for at in range(2000)]}, "the CPU worked for longer than time passed"),
        ({"cpu_tick_ms": 15.625}, None),
        ({"step_ms": lambda: 0.25}, None),
    ],
)
def test_clocks_that_contradict_themselves_are_refused(fault: dict[str, Any], reason: str | None) -> None:
    machine = noisy(3, 0.003)
    timing = measured(machine, machine.faulty_clock(**fault))[1]
    if reason is not None:
        assert timing.refused is not None
        assert timing.refused.startswith(reason)
    else:
        assert timing.refused is None
        assert timing.ratio == pytest.approx(RATIO, rel=0.02)
