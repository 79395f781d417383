"""Interleaved timing of a group of models beside anchors, robust statistics, and the refusal of bad numbers.

A machine's speed drifts (clocks, neighbours, heat), so a model's time means little; its ratio to anchors timed within
the same fraction of a second means much. Every sweep visits all models and all anchors once, in a new order. The
result of a model is its ratio to the geometric mean of the anchors, the median over the sweeps. Whoever holds the
anchors' reference time turns ratios into milliseconds.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hwprof.target import Plan

# A visit whose wall time exceeds its CPU time by more than this was interrupted; then CPU time is the better clock.
INTERRUPTED = 1.05
# CPU time of one thread cannot exceed wall time, but for what it takes to read the clocks.
CONTRADICTED = 1.1
CLOCK_NS = 10_000


class Session(Protocol):
    """A loaded model."""

    def run(self) -> None:
        """One synchronous inference on inputs bound once."""


@dataclass(frozen=True)
class Clock:
    """Wall and CPU time in nanoseconds. `cpu` is None where CPU time does not measure the work (GPU, many threads)."""

    wall: Callable[[], int] = time.perf_counter_ns
    cpu: Callable[[], int] | None = time.process_time_ns


@dataclass(frozen=True)
class Visit:
    """The timed runs of one model in one sweep; times are medians over the runs.

    `tick_ms` and `cpu_tick_ms` are the steps in which the clocks were seen to move, 0 if finely; `contradicted` is
    whether the CPU worked for longer than time passed.
    """

    ms: float
    wall_ms: float
    interrupted: bool
    runs: int
    warmup_runs: int
    tick_ms: float = 0.0
    cpu_tick_ms: float = 0.0
    contradicted: bool = False


@dataclass(frozen=True)
class Timing:
    """The result for one model: its time relative to the anchors.

    `ratio` is the median over sweeps, `standard_error` and `spread` (robust standard deviation of one sweep) are
    relative to it, `ratios` those of the single sweeps, `wall_ms` the plain median wall time.
    """

    ratio: float
    standard_error: float
    spread: float
    ratios: tuple[float, ...]
    wall_ms: float
    interrupted: float
    refused: str | None


@dataclass
class GroupTiming:
    """All visits of a group: `visits[name][sweep]`, for models and anchors alike, and the anchors' scale per sweep."""

    visits: dict[str, list[Visit]]
    anchors: tuple[str, ...]
    anchor_ms: list[float] = field(default_factory=list)

    def drift(self) -> float:
        """How much the anchors' time changed from the first to the second half of the sweeps, as a fraction."""
        half = len(self.anchor_ms) // 2
        first, second = statistics.median(self.anchor_ms[:half]), statistics.median(self.anchor_ms[half:])
        return abs(second / first - 1) if first > 0 else math.inf

    def timing(self, name: str, plan: Plan) -> Timing:
        """The statistics of one model, with the reason where the numbers are not good enough."""
        visits = self.visits[name]
        ratios = [visit.ms / anchor if anchor > 0 else 0.0 for visit, anchor in zip(visits, self.anchor_ms)]
        # One time that is not positive means a broken timer, whatever the other sweeps say.
        ratio = statistics.median(ratios) if min(ratios) > 0 else 0.0
        error, spread = standard_error(ratios), robust_spread(ratios)
        return Timing(
            ratio=ratio,
            standard_error=error,
            spread=spread,
            ratios=tuple(ratios),
            wall_ms=statistics.median(visit.wall_ms for visit in visits),
            interrupted=sum(visit.interrupted for visit in visits) / len(visits),
            refused=self._broken_clock(name, plan) or refusal(ratio, error, spread, self.drift(), plan),
        )

    def _broken_clock(self, name: str, plan: Plan) -> str | None:
        """Why the clocks' readings of a model, or of the anchors beside it, cannot be believed; None if they can."""
        for each in (name, *self.anchors):
            visits = self.visits.get(each, [])
            if 2 * sum(visit.contradicted for visit in visits) > len(visits):
                return "the CPU worked for longer than time passed: the timer is broken, or other threads run"
            coarse = [visit.tick_ms for visit in visits if visit.tick_ms > plan.max_standard_error * visit.ms]
            # A speed that changes within a visit can look like one step, but not twice.
            if len(coarse) > 1:
                return f"the clock moves in steps of {max(coarse):.3g} ms: too coarse for what is measured"
            blind = any(visit.cpu_tick_ms > plan.max_standard_error * visit.ms for visit in visits)
            if blind and any(visit.interrupted for visit in visits):
                return "the machine is busy, and its CPU clock is too coarse to tell for how long"
        return None


def time_group(
    models: Mapping[str, Session],
    anchors: Mapping[str, Session],
    plan: Plan,
    *,
    clock: Clock,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> GroupTiming:
    """Sweep over models and anchors until no model's numbers would be refused, or `plan.max_sweeps`.

    Without anchors (nothing to compare with) ratios are milliseconds.
    """
    sessions = {**models, **anchors}
    order = list(sessions)
    shuffler = random.Random(seed)
    group = GroupTiming({name: [] for name in sessions}, tuple(anchors))
    for sweep in range(plan.max_sweeps):
        shuffler.shuffle(order)
        for name in order:
            group.visits[name].append(_visit(sessions[name], plan, clock))
        group.anchor_ms.append(geometric_mean([group.visits[name][sweep].ms for name in anchors] or [1.0]))
        if progress is not None:
            progress(sweep + 1)
        if sweep + 1 >= plan.sweeps and not any(group.timing(name, plan).refused for name in models):
            break
    return group


def _visit(session: Session, plan: Plan, clock: Clock) -> Visit:
    for _ in range(plan.warmup_runs):
        session.run()
    walls: list[int] = []
    cpus: list[int] = []
    begin = clock.wall()
    while len(walls) < plan.min_runs or (len(walls) < plan.max_runs and (clock.wall() - begin) * 1e-6 < plan.visit_ms):
        cpu_start = clock.cpu() if clock.cpu else 0
        start = clock.wall()
        session.run()
        walls.append(clock.wall() - start)
        cpus.append(clock.cpu() - cpu_start if clock.cpu else 0)
    wall_ms = statistics.median(walls) * 1e-6
    cpu_ms = statistics.median(cpus) * 1e-6
    # A CPU clock too coarse to see a run (Windows: 16 ms) tells nothing about it.
    cpu_tick_ms = tick(cpus) * 1e-6
    seen = cpu_ms > 0 and cpu_tick_ms <= plan.max_standard_error * cpu_ms
    interrupted = seen and sum(walls) > INTERRUPTED * sum(cpus)
    return Visit(
        ms=cpu_ms if interrupted else wall_ms,
        wall_ms=wall_ms,
        interrupted=interrupted,
        runs=len(walls),
        warmup_runs=plan.warmup_runs,
        tick_ms=0.0 if interrupted else tick(walls) * 1e-6,
        cpu_tick_ms=cpu_tick_ms,
        contradicted=seen and sum(cpus) > CONTRADICTED * sum(walls) + CLOCK_NS * len(walls),
    )


def tick(readings: Sequence[int]) -> int:
    """The step in ns in which a clock moves, if differing readings are all multiples of one; 0 for a fine clock."""
    ordered = sorted(readings)
    step = min((after - before for before, after in zip(ordered, ordered[1:]) if after > before), default=0)
    return step if step and all(reading % step == 0 for reading in readings) else 0


def refusal(ratio: float, error: float, spread: float, drift: float, plan: Plan) -> str | None:
    """Why a number must not enter a table; None if it may."""
    if not math.isfinite(ratio) or ratio <= 0:
        return f"the time is {ratio}: the timer or the run is broken"
    if drift > plan.max_drift:
        return f"the anchors drifted by {drift:.1%} (limit {plan.max_drift:.0%}): the machine's speed is changing"
    if spread > plan.max_spread:
        return f"the sweeps spread by {spread:.1%} (limit {plan.max_spread:.0%}): the machine is busy"
    if error > plan.max_standard_error:
        return f"the standard error is {error:.1%} (limit {plan.max_standard_error:.0%}): the machine is busy"
    return None


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean log; 0 if any value is not positive, which refusal then catches."""
    if min(values) <= 0:
        return 0.0
    return math.exp(statistics.fmean(math.log(value) for value in values))


def robust_spread(values: Sequence[float]) -> float:
    """Standard deviation estimated from the median absolute deviation, relative to the median."""
    middle = statistics.median(values)
    if middle <= 0:
        return math.inf
    return 1.4826 * statistics.median(abs(value - middle) for value in values) / middle


def standard_error(values: Sequence[float], resamples: int = 200) -> float:
    """Bootstrap standard error of the median over sweeps, relative to the median."""
    middle = statistics.median(values)
    if middle <= 0:
        return math.inf
    generator = random.Random(0)
    medians = [statistics.median(generator.choices(values, k=len(values))) for _ in range(resamples)]
    return statistics.pstdev(medians) / middle


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half: as robust as a median, but not rounded to a coarse timer's ticks."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return statistics.fmean(ordered[cut : len(ordered) - cut])
