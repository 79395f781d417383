"""A machine whose time is simulated: what timing must see through, without a real clock."""

from __future__ import annotations

from collections.abc import Callable
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

    def session(self, name: str, ms: float, *, stolen_ms: Callable[[], float] = lambda: 0.0) -> Session:
        return Session(self, name, ms, stolen_ms)


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
