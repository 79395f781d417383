"""What works on this machine's GPU, executed: the first thing to run on a GPU that nobody has tried yet.

    python benchmarks/gpu_smoke.py
    python benchmarks/gpu_smoke.py --runtimes tensorrt onnxruntime-cuda --batches 1 --conformance

Every runtime that needs a GPU, in every precision and batch: a MobileNetV3 is written, built and run on it, compared
with the module that it was written from, timed beside itself, and profiled layer by layer. What cannot be executed is
printed with the reason, so that the output tells exactly what was. For several TensorRTs, run it once with each:

    python3.10 -m venv trt8 && trt8/bin/pip install -e . tensorrt==8.6.0 'nvidia-cudnn-cu12==8.*'
    python3 -m venv trt11 && trt11/bin/pip install -e . tensorrt==11.4.*
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch

from hwnas.graphs import suffix_of, write_arch
from hwnas.latency.rows import position_times
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.testing.runtimes import check_runtime, relative_difference, trained_like, why_not, write_module
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.runtimes import RUNTIMES
from hwprof.target import Plan, Target

GPU_RUNTIMES = ("tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda", "torch-cuda")


def targets(runtimes: list[str], batches: list[int]) -> Iterator[Target]:
    for runtime in runtimes:
        for precision, batch in product(RUNTIMES[runtime].precisions, batches):
            yield Target(runtime=runtime, precision=precision, batch=batch)


def tried(target: Target, folder: Path) -> str:
    """One line: the difference from the module, the time of a run, and what the layers tell."""
    space = MobileNetV3Space(resolutions=(224,))
    arch = tuple(len(slot.options) // 2 for slot in space.slots)
    arch = space.check(arch)
    module, images = trained_like(space, arch, target.batch)
    trained = folder / f"trained{suffix_of(target)}"
    write_module(module, images, target, trained)
    model = write_arch(space, arch, target, folder / "model")  # its nodes say of which block they are
    np.save(folder / "images.npy", images.numpy())
    with AgentClient(make_device(target.device), target, timeout_seconds=1800.0) as client:
        begin = time.perf_counter()
        (output,) = client.infer(trained, [folder / "images.npy"])
        first = time.perf_counter() - begin
        found = np.frombuffer(output.data, "<f4").reshape(output.shape)
        difference = relative_difference(module, images, found)
        (timed,) = client.measure({"model": model}, {"anchor": model}, Plan()).results
        told = ""
        if RUNTIMES[target.runtime].nodes:
            (profiled,) = client.measure({"model": model}, {"anchor": model}, Plan(), nodes=True).results
            nodes = profiled.nodes or ()
            times = position_times(nodes)
            told = f", {len(nodes)} layers of {len(times)} blocks sum to {sum(times.values()) / timed.ratio:.2f} of it"
    refused = f", refused: {timed.refused}" if timed.refused else ""
    return (
        f"differs by {difference:.1e}, {timed.wall_ms:.4f} ms, a ratio to itself of {timed.ratio:.3f} "
        f"(standard error {timed.standard_error:.1%}){told}, loaded and run once in {first:.1f} s{refused}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="+", default=list(GPU_RUNTIMES), choices=list(RUNTIMES), metavar="RUNTIME")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--conformance", action="store_true", help="hwnas's conformance suite as well: minutes each")
    chosen = parser.parse_args()
    executed, missing = 0, 0
    for target in targets(chosen.runtimes, chosen.batches):
        reason = why_not(target)
        try:
            if reason is None:
                with tempfile.TemporaryDirectory(prefix="hwnas-smoke-") as folder:
                    print(f"{target.slug()}: {tried(target, Path(folder))}", flush=True)
                if chosen.conformance and target.batch == chosen.batches[0]:
                    check_runtime(target)
                    print(f"{target.slug()}: conforms", flush=True)
                executed += 1
                continue
        except Exception as error:  # whatever it is, the others are tried
            reason = f"FAILED: {error!r}"
        missing += 1
        print(f"{target.slug()}: not executed: {reason}", flush=True)
    for runtime in chosen.runtimes:
        target = Target(runtime=runtime)
        if why_not(target) is None:
            with AgentClient(make_device("local"), target) as client:
                print(f"{runtime}: {client.fingerprint}")
    print(f"torch {torch.__version__}; {executed} executed, {missing} not")


if __name__ == "__main__":
    main()
