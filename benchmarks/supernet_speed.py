"""Supernet of Once-for-All's MobileNetV3 space: time and memory beside the original code, on the CPU, one thread.

    pip install --no-deps ofa
    OMP_NUM_THREADS=1 python benchmarks/supernet_speed.py

Rows: a random subnet's forward (batch 8, 224 pixels, no gradients), a training step of one random subnet (forward,
backward, SGD with momentum), extraction of a subnet as a network of its own. Both sides have the same architecture in a
round, and rounds alternate; medians of `--rounds`. Peak memory is that of a process of its own that only takes steps.
Without the package `ofa` only our times are shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hwnas.space import Arch, SearchSpace, rows_of
from hwnas.spaces import make_space
from hwnas.supernet.elastic import Supernet
from hwprof.host import identity

BATCH, SIZE, CLASSES = 8, 224, 1000


class Ours:
    """This project's supernet."""

    name = "hwnas"

    def __init__(self, space: SearchSpace) -> None:
        self.net = Supernet(space).train()
        self.optimizer = make_optimizer(self.net)

    def choose(self, arch: Arch) -> None:
        self.arch = arch

    def forward(self, x: Tensor) -> Tensor:
        # as this project's training gives it images; the authors' code has no such thing
        return self.net(x.contiguous(memory_format=torch.channels_last), self.arch)

    def extract(self) -> nn.Module:
        return self.net.extract(self.arch)


class Original:
    """The authors' package."""

    name = "ofa"

    def __init__(self, space: SearchSpace) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3

            self.net = OFAMobileNetV3(
                n_classes=CLASSES, dropout_rate=0, width_mult=1.0, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6],
                depth_list=[2, 3, 4],
            )  # fmt: skip
        self.net.train()
        self.optimizer = make_optimizer(self.net)
        self._space = space

    def choose(self, arch: Arch) -> None:
        choice = self._space.describe(arch)
        layers = [(stage, layer) for stage in range(5) for layer in range(4)]
        self.net.set_active_subnet(
            ks=[choice[f"stage{stage}.{layer}.kernel"] for stage, layer in layers],
            e=[choice[f"stage{stage}.{layer}.expand"] for stage, layer in layers],
            d=[choice[f"stage{stage}.depth"] for stage in range(5)],
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def extract(self) -> nn.Module:
        return self.net.get_active_subnet(preserve_weight=True)


def make_optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def forward(side: Ours | Original, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        side.forward(x)


def train_step(side: Ours | Original, x: Tensor, y: Tensor) -> None:
    side.optimizer.zero_grad()
    cross_entropy(side.forward(x), y).backward()
    side.optimizer.step()


def extraction(side: Ours | Original, x: Tensor, y: Tensor) -> None:
    side.extract()


ROWS: dict[str, Callable[[Ours | Original, Tensor, Tensor], None]] = {
    "random subnet forward": forward,
    "train step": train_step,
    "extract a subnet": extraction,
}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(0, CLASSES, (BATCH,), generator=generator)


def peak_mb(kind: str, steps: int) -> float:
    """Peak resident memory of a process that takes some training steps with random subnets."""
    ran = subprocess.run(
        [sys.executable, __file__, "--peak", kind, "--rounds", str(steps)], capture_output=True, text=True, check=True
    )
    return float(ran.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peak", choices=("hwnas", "ofa", "nothing"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    space = make_space("mobilenetv3", {"resolutions": [SIZE], "num_classes": CLASSES})
    archs = rows_of(space.sample(arguments.rounds + 2, np.random.default_rng(0)))
    x, y = batch()
    kinds: dict[str, type[Ours] | type[Original]] = {"hwnas": Ours, "ofa": Original}
    if arguments.peak:
        if arguments.peak != "nothing":
            side = kinds[arguments.peak](space)
            for arch in archs:
                side.choose(arch)
                train_step(side, x, y)
        # the peak of this process alone: getrusage has that of the one that began it
        status = Path("/proc/self/status").read_text(encoding="ascii")
        print(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024)
        return
    sides: list[Ours | Original] = [Ours(space)]
    try:
        sides.append(Original(space))
    except ImportError as error:
        print(f"the original cannot be compared: {error}; pip install --no-deps ofa")
    seconds: dict[tuple[str, str], list[float]] = {}
    for number, arch in enumerate(archs):
        for row, run in ROWS.items():
            for side in sides if number % 2 else sides[::-1]:
                side.choose(arch)
                begin = time.perf_counter()
                run(side, x, y)
                if number >= 2:  # the first rounds warm up
                    seconds.setdefault((row, side.name), []).append(time.perf_counter() - begin)
    print(f"{identity()['cpu']}, torch {torch.__version__}, one thread, batch {BATCH} at {SIZE} pixels")
    print(
        f"{'median of ' + str(arguments.rounds):24}" + "".join(f"{side.name:>12}" for side in sides) + f"{'ratio':>8}"
    )
    for row in ROWS:
        medians = [1e3 * statistics.median(seconds[row, side.name]) for side in sides]
        ratio = f"{medians[-1] / medians[0]:7.2f}x" if len(medians) == 2 else ""
        print(f"{row:24}" + "".join(f"{ms:9.1f} ms" for ms in medians) + ratio)
    start = peak_mb("nothing", 1)
    peaks = [peak_mb(side.name, 6) for side in sides]
    ratio = f"{peaks[-1] / peaks[0]:7.2f}x" if len(peaks) == 2 else ""
    print(f"{'peak memory, training':24}" + "".join(f"{mb:9.0f} MB" for mb in peaks) + f"{ratio} ({start:.0f} MB idle)")


if __name__ == "__main__":
    main()
