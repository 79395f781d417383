"""A machine whose time is simulated: what timing must see through, without a real clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hwprof.timing import Clock


@dataclass
class Machine:
    """Wall and CPU time in nanoseconds; `speed(seconds)` is how fast it computes at a moment."""

    speed: Callable[[float], float] = lambda seconds: 1.0
    wall: float = 0.0
    cpu: float = 0.0
    visited: list[str] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        return Clock(wall=lambda: round(self.wall), cpu=lambda: round(self.cpu))

    @property
    def gpu_clock(self) -> Clock:
        return Clock(wall=lambda: round(self.wall), cpu=None)

    def faulty_clock(
        self,
        *,
        jumps: Sequence[tuple[float, float]] = (),
        wall_tick_ms: float = 0.0,
        cpu_tick_ms: float = 0.0,
        cpu_stops_ms: float = float("inf"),
        step_ms: Callable[[], float] = lambda: 0.0,
    ) -> Clock:
        """The clock of a broken machine; times are in ms.

        `jumps`: (moment, by how much the wall clock steps then); ticks: the steps in which a clock moves; the CPU clock
        stands still from `cpu_stops_ms`; `step_ms` is added to the wall clock every time that it is read.
        """
        stepped = [0.0]

        def wall() -> int:
            stepped[0] += step_ms()
            offset = stepped[0] + sum(by for at, by in jumps if at * 1e6 <= self.wall)
            return ticking(self.wall + offset * 1e6, wall_tick_ms)

        return Clock(wall=wall, cpu=lambda: ticking(min(self.cpu, cpu_stops_ms * 1e6), cpu_tick_ms))

    def session(self, name: str, ms: float, *, stolen_ms: Callable[[], float] = lambda: 0.0) -> Session:
        return Session(self, name, ms, stolen_ms)


def ticking(ns: float, tick_ms: float) -> int:
    """What a clock shows that moves in steps."""
    return round(ns) if tick_ms == 0 else int(ns // (tick_ms * 1e6) * round(tick_ms * 1e6))


@dataclass
class Session:
    """A model that takes `ms` on this machine at speed 1; `stolen_ms` is when the core is somebody else's."""

    machine: Machine
    name: str
    ms: float
    stolen_ms: Callable[[], float]

    def run(self) -> None:
        took = self.ms * 1e6 / self.machine.speed(self.machine.wall * 1e-9)
        self.machine.cpu += took
        self.machine.wall += took + self.stolen_ms() * 1e6
        self.machine.visited.append(self.name)
