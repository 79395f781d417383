"""Which way to train a supernet is better in the same time, and what sharing weights costs.

    python benchmarks/supernet.py pipelines/supernet.toml --minutes 10 --own 4

Every method trains a supernet of the recipe's space on the recipe's images for `--minutes` of wall time, in a process
of one thread; the processes run side by side, so that they have the same machine. Then the same random subnets, and the
ends of the space, are evaluated on the validation images, with recalibrated statistics. `--own N`: N of the random
subnets are also trained alone, from scratch, for `--own-epochs`; the gap is their accuracy less that with shared
weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from hwnas.recipe import load_recipe
from hwnas.run import Run
from hwnas.space import Arch, format_arch, rows_of
from hwnas.supernet.elastic import Supernet
from hwnas.supernet.extremes import largest_arch, smallest_arch
from hwnas.supernet.images import SupernetImages
from hwnas.supernet.recalibrate import recalibrate
from hwnas.supernet.stages import METHODS
from hwnas.supernet.train import SupernetConfig, train_supernet
from hwnas.train.loop import evaluate, train
from hwnas.trained import build
from hwnas.training import train_config
from hwprof.host import identity


def subnets(run: Run, n: int) -> list[Arch]:
    """The ends of the space and n random architectures, the same for every method."""
    random = rows_of(run.space.sample(n, np.random.default_rng(1)))
    return [largest_arch(run.space), smallest_arch(run.space), *random]


def shared_accuracies(run: Run, method: str, minutes: float, n: int, rate: float | None) -> list[float]:
    """Validation accuracies in percent of the subnets of a supernet trained by a method."""
    net = Supernet(run.space, seed=run.recipe.seed)
    config = SupernetConfig(
        method=method,
        minutes=minutes,
        batch_size=run.recipe.train.batch_size,
        augment=run.recipe.train.augment,
        mix=run.recipe.train.mix,
        ema=run.recipe.train.ema,
        seed=run.recipe.seed,
        **({} if rate is None else {"learning_rate": rate}),
    )
    train_supernet(net, run.data, config, max_threads=1)
    data, images = run.data, SupernetImages(run.data, run.space, torch.device("cpu"))
    accuracies = []
    for arch in subnets(run, n):
        network = recalibrate(net.extract(arch), images.calibration(arch))
        size = run.space.input_shape(arch)[1]
        accuracies.append(evaluate(network, data.x_valid, data.y_valid, data.mean, data.std, size))
    return accuracies


def own_accuracy(run: Run, arch: Arch, epochs: int) -> float:
    """Validation accuracy in percent of a network that was trained alone."""
    config = replace(train_config(run), epochs=epochs, max_seconds=None)
    result = train(build(run, arch), run.data, run.space.input_shape(arch)[1], config, device="cpu", max_threads=1)
    return result.valid_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--subnets", type=int, default=24)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--own", type=int, default=0)
    parser.add_argument("--own-epochs", type=int, default=8)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run = Run(load_recipe(arguments.recipe), arguments.recipe.read_text(encoding="utf-8"))
    if arguments.arm:
        accuracies = shared_accuracies(
            run, arguments.arm, arguments.minutes, arguments.subnets, arguments.learning_rate
        )
        print(json.dumps(accuracies))
        return
    arms = {
        method: subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--arm", method], stdout=subprocess.PIPE, text=True
        )
        for method in METHODS
    }
    found = {method: json.loads(process.communicate()[0].splitlines()[-1]) for method, process in arms.items()}
    print(f"{identity()['cpu']}, torch {torch.__version__}, {run.data.name}, {arguments.minutes:g} minutes a method")
    print(
        f"{'method':14}{'largest':>9}{'smallest':>10}{f'{arguments.subnets} random: mean':>20}{'least':>8}{'most':>8}"
    )
    for method, (large, small, *others) in found.items():
        print(
            f"{method:14}{large:9.2f}{small:10.2f}{statistics.mean(others):20.2f}{min(others):8.2f}{max(others):8.2f}"
        )
    for number, arch in enumerate(subnets(run, arguments.subnets)[2 : 2 + arguments.own]):
        own = own_accuracy(run, arch, arguments.own_epochs)
        gaps = "  ".join(f"{method} {own - accuracies[2 + number]:+.2f}" for method, accuracies in found.items())
        print(f"{format_arch(arch)}: alone {own:.2f} after {arguments.own_epochs} epochs; gap {gaps}")


if __name__ == "__main__":
    main()
