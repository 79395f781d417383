"""The agent: runs on the device, takes jobs as JSON lines on standard input, answers in JSON lines.

    -> {"job": "open", "target": {...}, "host": "who asks"}
    <- {"event": "ready", "identity": {...}, "state": {...}, "versions": {...}}
    -> {"job": "group", "models": {"name": "file"}, "anchors": {"name": "file"}, "plan": {...}, "nodes": false, ...,
        "reference_ms": {"anchor": 1.0}}                  what the anchors took when the device was cool, if to wait for
    <- {"event": "waiting", "holder": ...}                once a second, while another measures on this machine
    <- {"event": "loading", "done": 1}                    before every file: to load one can take minutes
    <- {"event": "cooling", "slower": 0.1}                before every pause, while the anchors take longer than that
    <- {"event": "sweep", "done": 1}                      progress, after every sweep
    <- {"event": "result", "name": ..., "ratio": ..., ...} one line per model
    <- {"event": "done", "anchor_ms": [...], "seconds": ..., "state": {...}, ...}
    -> {"job": "infer", "model": "file", "inputs": ["file.npy"]}
    <- {"event": "outputs", "outputs": [{"shape": [...], "float32": "little-endian, base64"}]}
    <- {"event": "error", "kind": ..., "message": ...}     instead, when a job fails; the agent takes the next one

The end of standard input ends the agent, so it never outlives the host that asked.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Dict, TextIO

from hwprof import __version__, cores, host
from hwprof.cooling import cool_down
from hwprof.errors import HwprofError, MeasurementError, TargetError
from hwprof.gpu import braked, during, read_gpu
from hwprof.lock import machine_lock
from hwprof.runtimes import LoadedModel, NodeProfile, Runtime, make_runtime, require_runnable
from hwprof.target import Plan, Target, plan_from_json, target_from_json
from hwprof.timing import GroupTiming, interquartile_mean, time_group

Message = Dict[str, Any]  # evaluated on the device, whose Python may be old

# Idle threads that spin, and reports to a vendor, would take their time from what is measured.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


def main() -> None:
    """Serve jobs from standard input until it ends."""
    # Libraries write what they like to descriptor 1; answers get a copy of it and the rest goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    try:
        serve(sys.stdin, answers)
    except BrokenPipeError:
        os._exit(1)  # the host is gone; nothing is left to tell or to tidy


def serve(jobs: Iterable[str], answers: TextIO) -> None:
    """Answer every job line. A failing job answers with an error and does not end the agent."""

    def send(message: Message) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    agent = Agent(send)
    for line in jobs:
        if not line.strip():
            continue
        try:
            agent.answer(_parse(line))
        except BrokenPipeError:
            raise
        except HwprofError as error:
            send({"event": "error", "kind": type(error).__name__, "message": str(error)})
        except Exception as error:  # a job with a field missing, or a defect of a runtime: the next job may still do
            send({"event": "error", "kind": "HwprofError", "message": f"the job failed with {error!r}"})


class Agent:
    """One opened target and the jobs done on it; every answer is passed to `send` as soon as it is known."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._opened: tuple[Runtime, Target] | None = None
        self._accelerator = ""
        self._host = ""

    def answer(self, job: Message) -> None:
        """Do one job. Raises HwprofError on a job that cannot be done."""
        if job.get("job") == "open":
            target = target_from_json(job["target"])
            require_runnable(target)
            cores.pin(target.threads)  # before the runtime starts threads of its own, which stay where this one is
            runtime = make_runtime(target.runtime)
            runtime.clock(target)  # a precision that this processor lacks is refused now, not after minutes
            self._opened, self._host = (runtime, target), str(job.get("host", ""))
            versions = {"hwprof": __version__, **runtime.versions()}
            self._accelerator = versions.get("accelerator", "")
            gpu = read_gpu(self._accelerator)
            self._send(
                {
                    "event": "ready",
                    "identity": {**host.identity(), **gpu.identity},
                    "state": {**host.state(), **gpu.state},
                    "versions": versions,
                }
            )
        elif job.get("job") == "group":
            # Two profiles on one machine take turns, group by group: they would measure each other.
            with machine_lock(lambda holder: self._send({"event": "waiting", "holder": holder}), self._host):
                self._group(job)
        elif job.get("job") == "infer":
            self._infer(job)
        else:
            raise TargetError(f"unknown job {job.get('job')!r}; known: open, group, infer")

    @property
    def _open(self) -> tuple[Runtime, Target]:
        if self._opened is None:
            raise TargetError("a job came before a target was opened")
        return self._opened

    def _infer(self, job: Message) -> None:
        # NumPy comes with every runtime; a device that has neither can still say so.
        from hwprof.runtimes.arrays import encoded, infer_batches, read_arrays

        runtime, target = self._open
        model = runtime.load(Path(job["model"]), target, profile_nodes=False)
        try:
            outputs = infer_batches(model, read_arrays(job["inputs"]), target.batch)
        finally:
            model.close()
        self._send({"event": "outputs", "outputs": [encoded(array) for array in outputs]})

    def _group(self, job: Message) -> None:
        runtime, target = self._open
        plan = plan_from_json(job["plan"])
        begin, stolen, switches = time.perf_counter(), host.stolen_seconds(), host.involuntary_switches()
        models: dict[str, LoadedModel] = {}
        anchors: dict[str, LoadedModel] = {}
        try:
            for name, file in job["anchors"].items():
                self._send({"event": "loading", "done": len(anchors) + 1})
                anchors[name] = runtime.load(Path(file), target, profile_nodes=False)
            for name, file in job["models"].items():
                self._send({"event": "loading", "done": len(anchors) + len(models) + 1})
                models[name] = runtime.load(Path(file), target, profile_nodes=bool(job["nodes"]))
            cooling_seconds = self._cool_down(job, anchors, plan)
            gpu_before = read_gpu(self._accelerator)
            with _no_garbage_collection():
                group = time_group(
                    models,
                    anchors,
                    plan,
                    clock=runtime.clock(target),
                    seed=int(job["seed"]),
                    progress=lambda done: self._send({"event": "sweep", "done": done}),
                )
            gpu_after = read_gpu(self._accelerator)
        except BaseException:
            for model in (*models.values(), *anchors.values()):
                with contextlib.suppress(Exception):  # a session that never ran has no profile; the first error counts
                    model.close()
            raise
        profiles = {name: model.close() for name, model in models.items()}
        for anchor in anchors.values():
            anchor.close()
        brake = braked(gpu_before, gpu_after)
        for name in models:
            nodes = _node_ratios(name, group, profiles[name])
            timing = group.timing(name, plan)
            timing = replace(timing, refused=timing.refused or brake)
            self._send({"event": "result", "name": name, **asdict(timing), "nodes": nodes})
        self._send(
            {
                "event": "done",
                "anchor_ms": group.anchor_ms,
                "anchors": {name: [visit.ms for visit in group.visits[name]] for name in anchors},
                "drift": group.drift(),
                "seconds": time.perf_counter() - begin,
                "stolen_seconds": host.stolen_seconds() - stolen,
                "involuntary_switches": host.involuntary_switches() - switches,
                "state": {
                    **host.state(),
                    **during(gpu_before, gpu_after),
                    **({"cooling_seconds": f"{cooling_seconds:.0f}"} if cooling_seconds else {}),
                },
            }
        )

    def _cool_down(self, job: Message, anchors: dict[str, LoadedModel], plan: Plan) -> float:
        runtime, target = self._open
        reference_ms = {str(name): float(ms) for name, ms in job.get("reference_ms", {}).items()}
        if not reference_ms:
            return 0.0
        return cool_down(
            anchors,
            reference_ms,
            plan,
            runtime.clock(target),
            lambda slower: self._send({"event": "cooling", "slower": slower}),
        )


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _node_ratios(name: str, group: GroupTiming, profile: NodeProfile | None) -> list[tuple[str, float]] | None:
    """Each node's time relative to the anchors, in execution order: interquartile mean over all timed runs."""
    if profile is None or min(group.anchor_ms) <= 0:  # such a group's results are refused
        return None
    scaled: list[list[float]] = []
    run = 0
    for visit, anchor_ms in zip(group.visits[name], group.anchor_ms):
        first = run + visit.warmup_runs
        run = first + visit.runs
        scaled += [[us * 1e-3 / anchor_ms for us in times] for times in profile.us[first:run]]
    if run != len(profile.us):
        raise MeasurementError(
            f"{name}: the profiler recorded {len(profile.us)} runs of {run}; profile fewer per group"
        )
    if any(len(times) != len(profile.names) for times in scaled):
        raise MeasurementError(f"{name}: the profiler's runs do not have a time for each of {len(profile.names)} nodes")
    return [(node, interquartile_mean(times)) for node, times in zip(profile.names, zip(*scaled))]


def _parse(line: str) -> Message:
    try:
        job = json.loads(line)
    except ValueError as error:
        raise TargetError(f"a job must be one JSON object on a line: {error}") from error
    if not isinstance(job, dict):
        raise TargetError(f"a job must be a JSON object, got {type(job).__name__}")
    return job
