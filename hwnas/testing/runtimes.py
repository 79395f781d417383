"""Conformance of a target, device x runtime: everything that profiling, export and measuring take for granted.

Call `check_runtime` from a test of a runtime of your own, or of a device with one of ours: it drives the agent on the
device just as `hwnas profile` and `hwnas export` do. `why_not` gives the reason to skip it where it cannot run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.graphs import suffix_of, write_arch, write_graph
from hwnas.graphs.plain import plain_graph
from hwnas.graphs.ranges import measure_ranges
from hwnas.latency.rows import position_times
from hwnas.space import SearchSpace, rows_of
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.testing.networks import randomise, require
from hwprof.client import AgentClient
from hwprof.devices import Device, make_device
from hwprof.errors import DeviceError, HwprofError, MeasurementError, RuntimeMissingError, TargetError
from hwprof.files import companions
from hwprof.runtimes import kind_of
from hwprof.target import Plan, Target

# Root of the mean squared difference of the logits, relative to that of the logits themselves.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 0.25}
# Batches that are tried; a runtime without batches must say so.
_BATCHES = (1, 3)
# A group is measured to see that it can be; how well is the affair of `hwnas profile`.
_PLAN = Plan(sweeps=5, max_sweeps=5, max_standard_error=9.0, max_spread=9.0, max_drift=9.0)


def why_not(target: Target, device: Device | None = None) -> str | None:
    """Why the target cannot be opened from here (a package, a GPU, a device is missing); None if it can."""
    try:
        with AgentClient(device or make_device(target.device), target):
            return None
    except (RuntimeMissingError, DeviceError) as error:
        return str(error)


def check_runtime(target: Target, device: Device | None = None) -> None:
    """Raise AssertionError, saying what to change, unless the target keeps the contract of hwprof's Runtime.

    `device` is the target's own if it is not given. Small networks of both spaces are written, run, compared with their
    modules, measured and profiled, in the target's precision; then damaged files are tried.
    """
    device = device or make_device(target.device)
    with AgentClient(device, target) as client, tempfile.TemporaryDirectory(prefix="hwnas-conformance-") as name:
        folder = Path(name)
        _check_versions(client)
        for space in _spaces():
            _check_numbers(client, space, target, folder)
        _check_group(client, target, folder)
        _check_damaged(client, target, folder)
        _check_restart(client)
    _check_batch(device, target)
    _check_optimisation(device, target)


def _spaces() -> tuple[SearchSpace, ...]:
    small = MobileNetV3Space(
        resolutions=(24,), depths=(1, 2), num_classes=5, stem_width=8, stage_widths=(8, 16), stage_strides=(2, 2),
        se=(False, True), activations=("relu", "hardswish"), head_widths=(32, 48),
    )  # fmt: skip
    return small, NasBench201Space(channels=4, cells=1, resolution=8, num_classes=5)


def _check_versions(client: AgentClient) -> None:
    versions = client.ready["versions"]
    require(
        len(versions) > 1 and all(isinstance(text, str) and text for text in versions.values()),
        f"versions() must give the runtime's version and what else changes latency, each as text, got {versions}",
    )


def _check_numbers(client: AgentClient, space: SearchSpace, target: Target, folder: Path) -> None:
    for number, arch in enumerate(rows_of(space.sample(2, np.random.default_rng(0)))):
        module, images = trained_like(space, arch, target.batch)
        file = folder / f"{space.name}-{number}{suffix_of(target)}"
        write_module(module, images, target, file)
        found = _infer(client, file, images)
        difference = relative_difference(module, images, found)
        require(
            difference <= TOLERANCE[target.precision],
            f"{space.name} {arch} in {target.runtime} {target.precision} differs from its module by {difference:.2g} "
            f"(limit {TOLERANCE[target.precision]:g}): the writer or the runtime computes something else",
        )
        require(np.array_equal(_infer(client, file, images), found), f"{target.runtime} computes something else twice")


def trained_like(space: SearchSpace, arch: tuple[int, ...], batch: int, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network with weights and statistics that do something, in evaluation mode, and two batches of images for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = space.build(arch)
        randomise(module)
        return module.eval(), torch.randn(2 * batch, *space.input_shape(arch))


def write_module(module: nn.Module, images: Tensor, target: Target, file: Path) -> None:
    """Write a module as the target's file; int8 is ranged on the images."""
    shape = tuple(images.shape[1:])
    ranges = measure_ranges(module, images, [shape]) if target.precision == "int8" else None
    write_graph(plain_graph(module, [shape], batch=target.batch, ranges=ranges), target, file)


def relative_difference(module: nn.Module, images: Tensor, found: np.ndarray[Any, Any]) -> float:
    """Root mean square of found - expected, relative to that of expected; infinite where the shapes differ."""
    with torch.no_grad():
        expected = module(images).numpy()
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def _infer(client: AgentClient, file: Path, images: Tensor) -> np.ndarray[Any, Any]:
    path = file.with_name("images.npy")
    np.save(path, images.numpy())
    (output,) = client.infer(file, [path])
    return np.frombuffer(output.data, "<f4").reshape(output.shape)


def _check_group(client: AgentClient, target: Target, folder: Path) -> None:
    """Plain and profiled runs of a small and a large network."""
    space = MobileNetV3Space(resolutions=(32, 64), depths=(1, 2), num_classes=10)
    small, large = (0,) * len(space.slots), tuple(len(slot.options) - 1 for slot in space.slots)
    files = {
        name: write_arch(space, space.check(arch), target, folder / name)
        for name, arch in (("small", small), ("large", large))
    }
    group = client.measure(files, {"anchor": files["small"]}, _PLAN)
    ratios = {result.name: result.ratio for result in group.results}
    require(all(ratio > 0 for ratio in ratios.values()), f"times must be above 0, got ratios {ratios}")
    require(
        ratios["large"] > 1.2 * ratios["small"],
        f"a network of far more work takes {ratios['large'] / ratios['small']:.2f} times as long as a small one: "
        "run() must return when the work is done, and clock() must measure it",
    )
    profiled = client.measure(files, {"anchor": files["small"]}, _PLAN, nodes=True)
    for result in profiled.results:
        if not kind_of(target.runtime).nodes:
            require(result.nodes is None, f"{target.runtime} gives node times; say so in its Kind")
            continue
        require(bool(result.nodes), f"{target.runtime} gives no node times; say so in its Kind")
        times = position_times(result.nodes or ())
        covered = sum(times.values()) / ratios[result.name]
        require(
            0.3 < covered < 5 and len(times) >= 5,
            f"the nodes of the {result.name} network sum to {covered:.2f} of its time, in {len(times)} blocks: they "
            "must be all its kernels, named after the graph's nodes, in milliseconds of one run",
        )


def _check_damaged(client: AgentClient, target: Target, folder: Path) -> None:
    """A file that cannot be run is an error of that file; the agent goes on."""
    space = _spaces()[0]
    arch = (0,) * len(space.slots)
    whole = write_arch(space, arch, target, folder / "whole")
    damaged = folder / f"damaged{whole.name.removeprefix('whole')}"
    for data in (b"", b"not a model", whole.read_bytes()[: whole.stat().st_size // 3]):
        damaged.write_bytes(data)
        for other in companions(whole):
            other.with_name(other.name.replace("whole", "damaged", 1)).write_bytes(other.read_bytes())
        with _expected(MeasurementError, f"a file of {len(data)} bytes that is no model"):
            client.measure({"damaged": damaged}, {}, _PLAN)
    client.measure({"whole": whole}, {}, _PLAN)


def _check_restart(client: AgentClient) -> None:
    before = client.fingerprint
    client.restart()
    require(client.fingerprint == before, f"the fingerprint changes from {before} to {client.fingerprint}")


def _check_batch(device: Device, target: Target) -> None:
    for batch in _BATCHES:
        tried = replace(target, batch=batch)
        with tempfile.TemporaryDirectory(prefix="hwnas-conformance-") as name:
            try:
                with AgentClient(device, tried) as client:
                    _check_numbers(client, _spaces()[0], tried, Path(name))
            except HwprofError as error:
                require(
                    batch > 1 and "batch" in str(error), f"batch {batch} ends in an error that does not say so: {error}"
                )


def _check_optimisation(device: Device, target: Target) -> None:
    tried = replace(target, optimisation="no such level")
    with tempfile.TemporaryDirectory(prefix="hwnas-conformance-") as name, _expected(TargetError, "an unknown level"):
        file = write_arch(_spaces()[0], (0,) * len(_spaces()[0].slots), target, Path(name) / "model")
        with AgentClient(device, tried) as client:
            client.measure({"model": file}, {}, _PLAN)


@contextmanager
def _expected(kind: type[Exception], what: str) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"{what} must be a {kind.__name__}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"{what} must be a {kind.__name__}, but it was run")
