"""One file per runtime. A runtime loads a model file and gives one synchronous inference, and node times if it can."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from hwprof.errors import RuntimeMissingError, TargetError
from hwprof.target import Target
from hwprof.timing import Clock

RUNTIMES = {
    "onnxruntime": "hwprof.runtimes.onnxruntime:OnnxRuntime",
}


@dataclass(frozen=True)
class NodeProfile:
    """Node times of every run of a profiled session: `us[run][node]` in microseconds, for the nodes in `names`."""

    names: tuple[str, ...]
    us: tuple[tuple[float, ...], ...]


class LoadedModel(Protocol):
    """A model file on the device, ready to run."""

    def run(self) -> None:
        """One synchronous inference on inputs bound once."""

    def close(self) -> NodeProfile | None:
        """Free the model; the node times of all runs, if it was loaded to profile nodes."""


class Runtime(Protocol):
    """A way to run model files. Raises RuntimeMissingError when constructed where it is not installed."""

    def versions(self) -> dict[str, str]:
        """Versions of everything in the runtime that changes latency."""

    def clock(self, target: Target) -> Clock:
        """The clock that measures this runtime's work."""

    def load(self, path: Path, target: Target, *, profile_nodes: bool) -> LoadedModel:
        """Load a model file. Raises MeasurementError if it cannot be."""


def make_runtime(name: str) -> Runtime:
    """The runtime of that name. Raises TargetError on an unknown name, RuntimeMissingError if it is not installed."""
    if name not in RUNTIMES:
        raise TargetError(f"unknown runtime {name!r}; known: {', '.join(RUNTIMES)}")
    module, attribute = RUNTIMES[name].split(":")
    try:
        return cast(Runtime, getattr(importlib.import_module(module), attribute)())
    except ImportError as error:
        raise RuntimeMissingError(f"the runtime {name} is not installed here ({error}); pip install {name}") from error
