"""The accuracies that small networks of `mobilenetv3` really reach on real images: what zero-shot scores should rank.

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
    python benchmarks/mobilenet_truth.py --images images --networks 100 --repeats 8 --minutes 150

`--images` is the folder of `cifar10.npz`: x_train (50000, 32, 32, 3) uint8, y_train, x_test, y_test. Space, images and
training are those of `benchmarks/data/mobilenet_truth.json`; `benchmarks/data/README.md` has the results. Random
networks are trained with seed 0, then the first of them again with seed 1: how well two such tables agree bounds what
any score can reach. A finished network is a row on disk; a second call goes on after the last one. The shipped table
took one of two cores of a cloud AMD EPYC (AVX-512), no GPU; the two MALLOC variables, of glibc, keep freed memory.
Seconds depend on the machine and on who else used it, accuracies hardly.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from hwnas.space import Arch, SearchSpace, format_arch, rows_of, unique_archs
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.train.data import ImageData, load_data
from hwnas.train.loop import TrainConfig, TrainingFailed, train

DATA = Path(__file__).parent / "data"
SETTINGS, TABLE = DATA / "mobilenet_truth.json", DATA / "mobilenet_truth.csv"


@dataclass(frozen=True)
class Row:
    """One training: `arch` as of `format_arch`, accuracy on all test images, multiply-adds of one image."""

    arch: str
    seed: int
    test_accuracy_percent: float
    params: int
    macs: int
    seconds: float


def read_settings(path: Path = SETTINGS) -> dict[str, Any]:
    """`space`: arguments of MobileNetV3Space; `images`: file, counts and seed; `training`: those of TrainConfig."""
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return settings


def read_table(path: Path = TABLE) -> list[Row]:
    """The rows of a table, in the order of training; none if there is no such file yet."""
    if not path.exists():
        return []
    types = get_type_hints(Row)
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**{name: types[name](value) for name, value in line.items()}) for line in csv.DictReader(file)]


def read_images(folder: Path, settings: dict[str, Any]) -> ImageData:
    """A fixed random part of the training images, at the size that networks read, and all test images."""
    (size,), chosen = settings["space"]["resolutions"], settings["images"]
    full = load_data(f"npz:{folder / chosen['file']}", image_size=size)
    rng = np.random.default_rng(chosen["seed"])
    train, valid = (
        torch.from_numpy(rng.permutation(len(y))[:n].copy())
        for y, n in ((full.y_train, chosen["train"]), (full.y_valid, chosen["valid"]))
    )
    return ImageData(
        chosen["file"],
        full.x_train[train],
        full.y_train[train],
        full.x_valid[valid],
        full.y_valid[valid],
        full.x_test,
        full.y_test,
        full.class_names,
    )


def networks(space: SearchSpace) -> Iterator[Arch]:
    """Random architectures of a space, each network once, without end; the same for every call."""
    yield from rows_of(unique_archs(space.sample(1000, np.random.default_rng(0))))


def measured(space: SearchSpace, arch: Arch, seed: int, data: ImageData, training: dict[str, Any]) -> Row:
    """Train one network from scratch, on one thread."""
    torch.manual_seed(seed)
    blocks = space.blocks(arch)
    result = train(
        space.build(arch), data, space.input_shape(arch)[1], TrainConfig(**training, seed=seed), max_threads=1
    )
    params, macs = sum(block.params for block in blocks), sum(block.macs for block in blocks)
    return Row(format_arch(arch), seed, round(result.test_accuracy, 2), params, macs, round(result.seconds, 1))


def append(row: Row, path: Path) -> None:
    """Add a row to a table that a killed process leaves whole."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Spread, noise and what size alone explains, as lines of text."""
    first = {row.arch: row for row in rows if row.seed == 0}
    accuracies = [row.test_accuracy_percent for row in first.values()]
    if len(first) < 3:
        return
    yield (
        f"{len(first)} networks: test accuracy {min(accuracies):.1f} to {max(accuracies):.1f}%, "
        f"standard deviation {statistics.stdev(accuracies):.2f}"
    )
    for name in ("params", "macs"):
        sizes = [getattr(row, name) for row in first.values()]
        yield f"{name}: {agreement(sizes, accuracies)}; largest / smallest {max(sizes) / min(sizes):.0f}"
    pairs = [(first[row.arch].test_accuracy_percent, row.test_accuracy_percent) for row in rows if row.seed == 1]
    if len(pairs) > 2:
        # The difference of two trainings has twice the variance of one.
        noise = (statistics.fmean((one - other) ** 2 for one, other in pairs) / 2) ** 0.5
        same = agreement(*zip(*pairs, strict=True))
        yield f"another seed ({len(pairs)} networks): {same}; noise of one seed {noise:.2f}"


def agreement(one: Iterable[float], other: Iterable[float]) -> str:
    """Rank correlations of two lists, as text."""
    one, other = list(one), list(other)
    return f"Kendall {kendalltau(one, other).statistic:.3f}, Spearman {spearmanr(one, other).statistic:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, train what is missing, print each row and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="the folder of the images' .npz file")
    parser.add_argument("--networks", type=int, default=100, help="how many networks (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=0, help="how many of them again, with another seed")
    parser.add_argument("--minutes", type=float, default=75, help="begin no training after so long")
    parser.add_argument("--output", type=Path, default=TABLE, help="the table, read first and continued")
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    options = parser.parse_args(arguments)
    settings = read_settings(options.settings)
    space, data = MobileNetV3Space(**settings["space"]), read_images(options.images, settings)
    started = time.monotonic()
    wanted = list(itertools.islice(networks(space), options.networks))
    jobs = [(arch, 0) for arch in wanted] + [(arch, 1) for arch in wanted[: options.repeats]]
    done = {(row.arch, row.seed) for row in read_table(options.output)}
    print(
        f"{len(jobs)} trainings on {len(data.x_train)} images, tested on {len(data.x_test)}; {len(done)} in the table"
    )
    for number, (arch, seed) in enumerate(jobs, 1):
        if (format_arch(arch), seed) in done:
            continue
        if time.monotonic() - started > 60 * options.minutes:
            print(f"{options.minutes} minutes are over")
            break
        try:
            row = measured(space, arch, seed, data, settings["training"])
        except TrainingFailed as failure:
            print(f"{number}/{len(jobs)} {format_arch(arch)}, seed {seed}: {failure}", flush=True)
            continue
        append(row, options.output)
        print(f"{number}/{len(jobs)} {row}", flush=True)
    print(*summary(read_table(options.output)), sep="\n")


if __name__ == "__main__":
    main()
