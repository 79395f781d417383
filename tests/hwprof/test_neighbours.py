"""Real neighbours on the core that is measured: the ratio stays, where the mean of wall times does not."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from agents import write_model

from hwprof.client import AgentClient, Result
from hwprof.devices.local import LocalDevice
from hwprof.runtimes.onnxruntime import OnnxRuntime
from hwprof.target import Plan, Target

BURNS = "print('busy', flush=True)\nwhile True:\n    sum(range(1000))\n"
THRASHES = (
    "import numpy\nmemory = numpy.zeros(8_000_000)\nprint('busy', flush=True)\nwhile True:\n    memory[::8] += 1\n"
)
REASONS = ("the anchors drifted", "the sweeps spread", "the standard error is", "the machine is busy")
PLAN = Plan(sweeps=7, max_sweeps=13, max_runs=12, visit_ms=6.0)


@pytest.fixture
def one_core() -> Iterator[None]:
    """This process and all that it starts on one core, so that they share it on a machine of any size."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("only Linux gives a process a core of its own")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)


@contextmanager
def neighbours(*scripts: str) -> Iterator[None]:
    """Processes that keep the core busy until the end."""
    with ExitStack() as stack:
        for script in scripts:
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
        yield


def naive_ms(path: Path, seconds: float = 0.7) -> float:
    """What a stopwatch around many runs says."""
    session = OnnxRuntime().load(path, Target(), profile_nodes=False)
    session.run()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        session.run()
        times.append((time.perf_counter() - start) * 1e3)
    session.close()
    return statistics.fmean(times)


def require_right_or_refused(noisy: Result, quiet: Result) -> None:
    if noisy.refused:
        assert noisy.refused.startswith(REASONS)
        # Even what is not good enough is far better than the stopwatch.
        assert noisy.ratio == pytest.approx(quiet.ratio, rel=0.35)
    else:
        error = 3 * (noisy.standard_error**2 + quiet.standard_error**2) ** 0.5
        assert noisy.ratio == pytest.approx(quiet.ratio, rel=error + 0.12)


def test_busy_neighbours_on_the_same_core_are_seen_through_or_the_reason_is_told(
    one_core: None, tmp_path: Path
) -> None:
    models = {f"{size}": write_model(tmp_path / f"{size}.onnx", (1, 4, size, size), 5) for size in (160, 224)}
    anchors = {f"anchor {size}": write_model(tmp_path / f"a{size}.onnx", (1, 4, size, size), 3) for size in (128, 224)}
    stopwatch = models["160"]
    with AgentClient(LocalDevice(), Target()) as client:
        quiet = {result.name: result for result in client.measure(models, anchors, PLAN).results}
        quiet_ms = naive_ms(stopwatch)
        with neighbours(BURNS, BURNS, THRASHES):
            noisy = client.measure(models, anchors, PLAN).results
            noisy_ms = naive_ms(stopwatch)
    # The load is one: a stopwatch is off by more than any number above may be.
    assert noisy_ms > 1.5 * quiet_ms
    for result in noisy:
        if quiet[result.name].refused is None:
            require_right_or_refused(result, quiet[result.name])
