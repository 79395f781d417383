"""LEMONADE whole on real images: its front over the epochs spent, beside the same search without inheritance.

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python benchmarks/lemonade.py --images images --folder lemonade

Searches for accurate and fast networks on a part of CIFAR-10 (`--images`: the folder of cifar10.npz) at 16 x 16 pixels,
all through the package's own run of a recipe, in `--folder`, where each goes on if it was stopped. The space is
profiled once on this machine. Then every arm spends the same number of training epochs:

    lemonade   children inherit their parents' weights and train `--child-epochs`
    scratch    the same sampler, but every network is trained from scratch for `--epochs`
    random     random networks, trained from scratch for `--epochs`

After every quarter of the epochs: the networks trained so far, the test accuracy of the network with the best
validation accuracy among those predicted to keep each of three latency limits (the quartiles of random networks), and
the hypervolume of the front: test error and latency of the networks that none beats in validation accuracy and latency,
in percent of the box from zero to the error of guessing and the latency of the slowest of 1000 random networks. At the
end the last fronts are measured on this machine, all together, and the same is said of measured latency. Means over
`--seeds`. `--arms` runs some of the arms, so that two processes can share the work; the last call prints all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwnas.graphs import write_arch
from hwnas.latency.measure import Measured, measure_files
from hwnas.pipeline import profile_stage, search_stage
from hwnas.recipe import parse_recipe
from hwnas.run import Run, train_study
from hwnas.search.pareto import hypervolume, nondominated
from hwnas.search.problem import FloatVector
from hwnas.search.study import recorded
from hwnas.space import Arch, format_arch

START = 5  # networks that LEMONADE begins with, which all train as long as from scratch
QUARTERS = 4
ARMS = {
    "lemonade": ("lemonade", "child_epochs = {child_epochs}"),
    "scratch": ("lemonade", "inherit = false"),
    "random": ("random", ""),
}
SPACES = {
    "morph": "resolution = 16\nwidths = [8, 12, 16, 24, 32, 48, 64]\nstages = 3\nmax_depth = 3",
    "mobilenetv3": "resolutions = [16]\nwidth_mults = [0.5, 1.0]\ndepths = [1, 2, 3]\nkernels = [3, 5]\n"
    "expands = [2, 3, 4]\nstem_stride = 1\nstage_widths = [16, 24, 32, 48]\nstage_strides = [1, 2, 2, 1]\n"
    'se = [false, true, false, true]\nactivations = ["relu", "relu", "hardswish", "hardswish"]\n'
    "head_widths = [192, 192]",
}
RECIPE = """\
name = "{arm}-{seed}"
seed = {seed}
runs = "{folder}/runs/{space}"
[data]
source = "npz:{folder}/part.npz"
image_size = 16
valid_fraction = 0.2
[space]
name = "{space}"
{arguments}
[profile]
tables = "{folder}/latency_tables"
networks = 150
fit = 64
held_out = 24
[search]
sampler = "{sampler}"
sampler_options = {options}
trainings = {trainings}
[train]
epochs = {epochs}
threads = 1
device = "cpu"
timeout_seconds = 600
{how}
"""


class Trained(NamedTuple):
    """A trained network: epochs it took, accuracies in percent, predicted latency in ms, seconds of training."""

    arch: Arch
    epochs: int
    valid: float
    test: float
    ms: float
    seconds: float


class Yardstick(NamedTuple):
    """Three latency limits in ms, and the reference of hypervolumes: (test error in percent, latency in ms)."""

    limits: FloatVector
    reference: FloatVector


class Standing(NamedTuple):
    """What some networks amount to: their number, test accuracies under the limits and hypervolume, both in percent."""

    networks: int
    best: FloatVector
    volume: float


def make_run(options: argparse.Namespace, arm: str, seed: int) -> Run:
    """The run of an arm; its trainings spend `options.budget` epochs, or as close below as whole trainings come."""
    sampler, how = ARMS[arm]
    trainings = options.budget // options.epochs
    if arm == "lemonade":
        trainings = START + (options.budget - START * options.epochs) // options.child_epochs
    text = RECIPE.format(
        arm=arm, seed=seed, folder=options.folder.as_posix(), space=options.space, arguments=SPACES[options.space],
        sampler=sampler, options="{}" if arm == "random" else f"{{start = {START}}}", trainings=trainings,
        epochs=options.epochs, how=how.format(child_epochs=options.child_epochs),
    )  # fmt: skip
    begun = time.monotonic()

    def progress(stage: str, done: int, total: int, /) -> None:
        if done == total and not stage.startswith("train network"):
            print(f"  {arm}-{seed}: {stage} ({time.monotonic() - begun:.0f} s)", flush=True)

    return Run(parse_recipe(text), text, progress=progress)


def trained(run: Run) -> list[Trained]:
    """The trained networks of a run in the order in which they were finished."""
    trials = recorded(train_study(run))
    found = [
        (trial.datetime_complete, Trained(arch, facts["epochs"], valid, facts["test_accuracy"], ms, facts["seconds"]))
        for arch, trial in trials.items()
        for facts, (valid, ms) in [(trial.user_attrs, trial.values)]
    ]
    return [one for _, one in sorted(found)]


def until(networks: Sequence[Trained], epochs: float) -> list[Trained]:
    """The networks that were finished before so many epochs were spent."""
    spent = np.cumsum([one.epochs for one in networks])
    return [one for one, after in zip(networks, spent, strict=True) if after <= epochs]


def front(networks: Sequence[Trained]) -> list[Trained]:
    """Those that none beats in validation accuracy and latency, fastest first."""
    kept = nondominated(np.array([(-one.valid, one.ms) for one in networks]).reshape(-1, 2))
    return sorted((networks[number] for number in np.flatnonzero(kept)), key=lambda one: one.ms)


def standing(networks: Sequence[Trained], yardstick: Yardstick) -> Standing:
    """What these networks amount to; chosen by validation accuracy, judged by test accuracy."""
    best = np.full(len(yardstick.limits), np.nan)
    for number, limit in enumerate(yardstick.limits):
        if within := [one for one in networks if one.ms <= limit]:
            best[number] = max(within, key=lambda one: one.valid).test
    losses = np.array([(100 - one.test, one.ms) for one in front(networks)]).reshape(-1, 2)
    volume = 100 * hypervolume(losses, yardstick.reference) / float(yardstick.reference.prod())
    return Standing(len(networks), best, volume)


def yardstick_of(run: Run) -> Yardstick:
    """Limits and reference from 1000 random networks of the space."""
    ms = run.predictor.predict_ms(run.space.sample(1000, np.random.default_rng(0)))
    guessing = 100 - 100 / run.space.num_classes
    return Yardstick(np.quantile(ms, [0.25, 0.5, 0.75]), np.array([guessing, ms.max()]))


def measure(run: Run, archs: Sequence[Arch]) -> dict[Arch, Measured]:
    """Each network on this machine, all interleaved with the anchors of the table; refused ones again."""
    with tempfile.TemporaryDirectory(prefix="lemonade-") as folder:
        files = {
            format_arch(arch): write_arch(run.space, arch, run.target, Path(folder) / run.network_name(arch))
            for arch in archs
        }
        found = measure_files(files, run.space, run.table, run.device, plan=run.plan)
    return {arch: found[format_arch(arch)] for arch in archs}


def line(name: str, standings: Sequence[Standing]) -> str:
    """A row of a table: means over seeds, and the hypervolume of each seed."""
    best = np.mean([one.best for one in standings], axis=0)
    networks = np.mean([one.networks for one in standings])
    volumes = [one.volume for one in standings]
    each = ", ".join(f"{volume:.2f}" for volume in volumes)
    return f"| {name} | {networks:.0f} | {' | '.join(f'{b:.1f}' for b in best)} | {np.mean(volumes):.2f} ({each}) |"


def head(first: str, yardstick: Yardstick) -> Iterator[str]:
    """The head of a table."""
    limits = " | ".join(f"test % within {limit:.3f} ms" for limit in yardstick.limits)
    yield f"| {first} | networks | {limits} | hypervolume % (each seed) |"
    yield "|---" * (len(yardstick.limits) + 3) + "|"


def growth(found: dict[str, list[list[Trained]]], yardstick: Yardstick, budget: int) -> Iterator[str]:
    """The table of predicted latency after every quarter of the epochs; `found`: a list of networks for each seed."""
    yield from head("epochs, arm", yardstick)
    for quarter in range(1, QUARTERS + 1):
        epochs = budget * quarter / QUARTERS
        for arm, seeds in found.items():
            yield line(f"{epochs:.0f} {arm}", [standing(until(networks, epochs), yardstick) for networks in seeds])


def confirmed(
    found: dict[str, list[list[Trained]]], measured: dict[Arch, Measured], yardstick: Yardstick
) -> Iterator[str]:
    """The table of measured latency of the last fronts, and the fronts."""
    again = {
        arm: [[one._replace(ms=measured[one.arch].ms) for one in front(networks)] for networks in seeds]
        for arm, seeds in found.items()
    }
    yield from head("measured, arm", yardstick)
    for arm, seeds in again.items():
        yield line(arm, [standing(networks, yardstick) for networks in seeds])
    yield ""
    for arm, seeds in again.items():
        for seed, networks in enumerate(seeds):
            points = ", ".join(f"{one.ms:.3f} ms {one.test:.1f}%" for one in front(networks))
            yield f"{arm}-{seed}: {points}"
    predicted = {one.arch: one.ms for seeds in found.values() for networks in seeds for one in networks}
    errors = [abs(predicted[arch] / one.ms - 1) for arch, one in measured.items()]
    refused = sum(one.refused is not None for one in measured.values())
    yield f"\n{len(measured)} networks measured, {refused} refused; predictions off by {100 * np.mean(errors):.1f}%"


def make_part(options: argparse.Namespace) -> None:
    """Write the first training and test images of CIFAR-10 into the folder."""
    path = options.folder / "part.npz"
    if not path.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        full = np.load(options.images / "cifar10.npz")
        np.savez(path, **{f"{kind}_{part}": full[f"{kind}_{part}"][: getattr(options, part)]
                          for part in ("train", "test") for kind in "xy"})  # fmt: skip
    with np.load(path) as part:
        if (len(part["y_train"]), len(part["y_test"])) != (options.train, options.test):
            raise SystemExit(f"{path} has another number of images; give another --folder")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, profile, search, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="the folder of cifar10.npz")
    parser.add_argument("--folder", type=Path, required=True, help="for tables, runs and the part of the images")
    parser.add_argument("--space", choices=sorted(SPACES), default="morph")
    parser.add_argument("--arms", default=",".join(ARMS), help="which to run (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8, help="of a network from scratch (default %(default)s)")
    parser.add_argument("--child-epochs", type=int, default=4, help="of one that inherits (default %(default)s)")
    parser.add_argument("--budget", type=int, default=120, help="epochs of an arm (default %(default)s)")
    parser.add_argument("--train", type=int, default=5000, help="training images, a fifth of them for validation")
    parser.add_argument("--test", type=int, default=2000)
    options = parser.parse_args(arguments)
    make_part(options)
    runs = {arm: [make_run(options, arm, seed) for seed in range(options.seeds)] for arm in options.arms.split(",")}
    first = next(iter(runs.values()))[0]
    profile_stage(first)
    found: dict[str, list[list[Trained]]] = {arm: [] for arm in runs}
    for seed in range(options.seeds):
        for arm, ones in runs.items():
            search_stage(ones[seed])
            found[arm].append(trained(ones[seed]))
            epochs, seconds = (sum(getattr(one, what) for one in found[arm][-1]) for what in ("epochs", "seconds"))
            print(f"{arm}-{seed}: {len(found[arm][-1])} networks, {epochs} epochs, trained {seconds:.0f} s", flush=True)
    yardstick = yardstick_of(first)
    print(f"\n{options.space}, {options.train} images, {options.budget} epochs an arm, {options.epochs} a network, "
          f"{options.child_epochs} a child; on {first.fingerprint.get('cpu', 'an unknown processor')}\n")  # fmt: skip
    print("\n".join(growth(found, yardstick, options.budget)), flush=True)
    archs = [one.arch for seeds in found.values() for networks in seeds for one in front(networks)]
    measured = measure(first, list(dict.fromkeys(archs)))
    print("\n" + "\n".join(confirmed(found, measured, yardstick)))


if __name__ == "__main__":
    main()
