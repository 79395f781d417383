"""What is measured on (Target) and how carefully (Plan). Both are saved with every number."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from hwprof.errors import TargetError

_LONGEST_SLUG = 100
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class Target:
    """One way to run a network: every field changes its latency, so every field is part of a table's identity.

    `device` is how to reach the machine (see `hwprof.devices`), `threads` those of one inference, `batch` the images of
    one inference, `optimisation` the runtime's own graph optimisation level ("all", "extended", "basic", "none"),
    with options of the runtime behind it ("all+tf32") if it has any.
    """

    device: str = "local"
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1
    optimisation: str = "all"

    def __post_init__(self) -> None:
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise TargetError(f"target.{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise TargetError(f"target.precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    def slug(self) -> str:
        """Short text for file names, e.g. 'onnxruntime-fp32-b1-t1'."""
        level = "" if self.optimisation == "all" else f"-{self.optimisation}"
        # Runtimes and levels can be any text in a recipe; as a part of a file's name they stay in its folder.
        text = f"{self.runtime}-{self.precision}-b{self.batch}-t{self.threads}{level}"
        return re.sub(r"[^A-Za-z0-9_.+=,-]+", "-", text)[:_LONGEST_SLUG]


@dataclass(frozen=True)
class Plan:
    """How a group of models is measured, and when a number is refused.

    A sweep visits every model and every anchor once, in a new order. A visit is `warmup_runs` runs, then at least
    `min_runs` timed runs and as many more as fit into `visit_ms`. Sweeps go on from `sweeps` up to `max_sweeps` as
    long as a model's standard error is too large. Limits are fractions: 0.02 is 2%. With `cool_down_seconds`, a device
    that has become slower than in its first group is given so long before each group to cool (see `hwprof.cooling`).
    """

    sweeps: int = 7
    max_sweeps: int = 21
    warmup_runs: int = 1
    min_runs: int = 2
    max_runs: int = 40
    visit_ms: float = 8.0
    max_standard_error: float = 0.02
    max_spread: float = 0.10
    max_drift: float = 0.10
    cool_down_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 3 <= self.sweeps <= self.max_sweeps:
            raise TargetError(f"a plan needs 3 <= sweeps <= max_sweeps, got {self.sweeps} and {self.max_sweeps}")
        if not 1 <= self.min_runs <= self.max_runs:
            raise TargetError(f"a plan needs 1 <= min_runs <= max_runs, got {self.min_runs} and {self.max_runs}")
        if self.warmup_runs < 0:
            raise TargetError(f"a plan needs warmup_runs of at least 0, got {self.warmup_runs}")
        if not 0 <= self.cool_down_seconds <= 3600:
            raise TargetError(f"a plan needs cool_down_seconds between 0 and 3600, got {self.cool_down_seconds}")
        for name in ("visit_ms", "max_standard_error", "max_spread", "max_drift"):
            if not getattr(self, name) > 0:
                raise TargetError(f"a plan needs {name} above 0, got {getattr(self, name)}")


def to_json(value: Target | Plan) -> dict[str, Any]:
    """The fields as a dictionary of plain values."""
    return asdict(value)


def target_from_json(values: dict[str, Any]) -> Target:
    """The inverse of `to_json`. Raises TargetError on unknown or wrongly typed fields."""
    return Target(**_checked(Target, values))


def plan_from_json(values: dict[str, Any]) -> Plan:
    """The inverse of `to_json`. Raises TargetError on unknown or wrongly typed fields."""
    return Plan(**_checked(Plan, values))


def _checked(kind: type[Target | Plan], values: dict[str, Any]) -> dict[str, Any]:
    types = {"str": (str,), "int": (int,), "float": (int, float)}
    known = {field.name: types[str(field.type)] for field in fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise TargetError(f"{kind.__name__.lower()} has no field {name!r}; its fields: {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, known[name]):
            expected = known[name][-1].__name__
            raise TargetError(f"{kind.__name__.lower()}.{name} must be {expected}, got {value!r}")
    return values
