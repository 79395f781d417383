"""How well zero-shot scores rank networks whose accuracy is known, and how long they take.

    export OMP_WAIT_POLICY=PASSIVE
    python benchmarks/zero_shot.py cells --truth nb201_cifar10.csv.gz --images images --networks 600
    python benchmarks/zero_shot.py mobilenet --images images

`--images` is the folder of `cifar10.npz` (x_train (50000, 32, 32, 3) uint8, y_train). `cells`: random cells of
NAS-Bench-201 against their CIFAR-10 test accuracy after 200 epochs; `--truth` has the columns `ops` (six digits: none,
skip, 1x1, 3x3, pool; edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3) and `c10_test_200`. `mobilenet`: the networks of
`benchmarks/data/mobilenet_truth.csv`. Kendall's tau and Spearman's rho have bootstrap intervals of 95%, over all
networks and within the best tenth (ranked among all); seconds are those of one network, a score alone, on one thread.
Scored networks are kept in `--cache`; a second call goes on. Results: `benchmarks/data/README.md`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from hwnas.ranks import average_ranks
from hwnas.scoring import Scorers, Scoring
from hwnas.space import Arch, format_arch, parse_arch, rows_of
from hwnas.spaces import make_space
from hwnas.zeroshot import COMBINED, SCORES, score_names
from hwnas.zeroshot.combine import combine, silent, silent_among_best
from mobilenet_truth import read_settings, read_table

FloatVector = NDArray[np.float64]
FloatMatrix = NDArray[np.float64]
Truth = dict[Arch, float]

BEST = 0.1
RESAMPLES = 1000
TIMED = 3  # networks of which the seconds are the median
# Combinations to compare with: those of AZ-NAS (Lee and Ham 2024), alone and with one more.
COMBINATIONS = {
    "AZ-NAS": ("expressivity", "progressivity", "trainability", "macs"),
    "AZ-NAS + synflow": ("expressivity", "progressivity", "trainability", "macs", "synflow"),
    "combined": COMBINED,
}


def read_cells(path: Path, count: int, skip: int = 0) -> list[tuple[Arch, float]]:
    """`count` random cells, as they are built, with their test accuracy in percent. Equal cells count as often.

    `skip`: others than the first so many, of which none equals one of those.
    """
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))[: skip + count]]
    archs = np.array([[int(digit) for digit in row["ops"]] for row in chosen], dtype=np.int64)
    canonical = rows_of(make_space("nasbench201", {}).canonical(archs))
    skipped = set(canonical[:skip])
    cells = zip(canonical[skip:], chosen[skip:], strict=True)
    return [(arch, float(row["c10_test_200"])) for arch, row in cells if arch not in skipped]


def read_mobile_networks() -> list[tuple[Arch, float]]:
    """The trained networks with their test accuracy, the mean where one was trained twice."""
    accuracies: dict[str, list[float]] = {}
    for row in read_table():
        accuracies.setdefault(row.arch, []).append(row.test_accuracy_percent)
    return [(parse_arch(arch), float(np.mean(found))) for arch, found in accuracies.items()]


def scoring(space: str, arguments: dict[str, Any], names: Sequence[str], options: argparse.Namespace) -> Scoring:
    """The scores on a batch of CIFAR-10."""
    with np.load(options.images / "cifar10.npz") as arrays:
        chosen = np.random.default_rng(options.seed).permutation(len(arrays["y_train"]))[
            : options.batch * options.draws
        ]
        images, labels = arrays["x_train"][chosen], arrays["y_train"][chosen]
    made = make_space(space, arguments)
    return Scoring(
        names=tuple(names),
        space_name=space,
        space_config=dict(made.config),
        images=torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        labels=torch.from_numpy(labels.astype(np.int64).ravel()),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        resolution=32,
        seed=options.seed,
        draws=options.draws,
    )


def scored(how: Scoring, archs: Sequence[Arch], cache: Path, workers: int | None) -> dict[Arch, dict[str, Any]]:
    """Architecture -> {"scores": name -> value}, read from the cache as far as they are there."""
    key = {
        "names": list(how.names),
        "images": len(how.images),
        "draws": how.draws,
        "seed": how.seed,
        "space": dict(how.space_config),
    }
    known: dict[Arch, dict[str, Any]] = {}
    if cache.exists():
        first, *rows = cache.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != key:
            raise SystemExit(f"{cache} was scored in another way ({first[:200]}): give another --cache")
        known = {parse_arch(row["arch"]): row for row in map(json.loads, rows)}
    else:
        cache.write_text(json.dumps(key) + "\n", encoding="utf-8")
    missing = [arch for arch in dict.fromkeys(archs) if arch not in known]
    with Scorers(how, workers) as scorers, cache.open("a", encoding="utf-8") as file:
        for done, (arch, results) in enumerate(scorers.score(missing), 1):
            row = {"arch": format_arch(arch), "scores": {name: result.value for name, result in results.items()}}
            known[arch] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            if done % 50 == 0:
                print(f"{done} of {len(missing)} scored", flush=True)
    return known


def agreement(values: FloatVector, truth: FloatVector) -> tuple[float, float]:
    """Kendall's tau and Spearman's rho; 0 where all values are equal."""
    if np.ptp(values) == 0:
        return 0.0, 0.0
    return float(kendalltau(values, truth).statistic), float(spearmanr(values, truth).statistic)


def with_intervals(values: FloatVector, truth: FloatVector) -> str:
    """Both, each with its bootstrap interval of 95%."""
    rng = np.random.default_rng(0)
    samples = (rng.integers(len(truth), size=len(truth)) for _ in range(RESAMPLES))
    spread = np.array([agreement(values[rows], truth[rows]) for rows in samples])
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    shown = zip(agreement(values, truth), low, high, strict=True)
    return " ".join(f"{one:6.3f} [{a:6.3f}, {b:6.3f}]" for one, a, b in shown)


def alone(how: Scoring, names: Sequence[str], archs: Sequence[Arch]) -> float:
    """Median seconds to score a network on one thread, all draws, if only these scores are asked for."""
    spent = []
    for arch in archs:
        started = time.perf_counter()
        replace(how, names=tuple(names)).score(arch)
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def plain(scores: FloatMatrix) -> FloatVector:
    """(n, k) -> (n,) mean log rank, every score counted, as AZ-NAS has it."""
    total: FloatVector = np.log(np.apply_along_axis(average_ranks, 0, scores) / len(scores)).mean(axis=1)
    return total


def report(how: Scoring, networks: Sequence[tuple[Arch, float]], rows: dict[Arch, dict[str, Any]]) -> Iterator[str]:
    """The table, as lines."""
    truth = np.array([accuracy for _, accuracy in networks])
    names = list(how.names)
    matrix = np.array([[rows[arch]["scores"][name] for name in names] for arch, _ in networks], dtype=np.float64)
    best = truth >= np.quantile(truth, 1 - BEST)
    timed = [arch for arch, _ in sorted(networks, key=lambda network: network[1])[-TIMED:]]
    alone(how, names[:1], timed)  # what is loaded and prepared once
    yield f"{len(truth)} networks, accuracy {truth.min():.1f} to {truth.max():.1f}%; {best.sum()} in the best tenth"
    yield f"{'score':18}{'tau, all':24}{'rho, all':25}{'tau, best tenth':25}{'rho, best tenth':25}undefined  s"
    combinations = {name: parts for name, parts in COMBINATIONS.items() if set(parts) <= set(names)}
    for name, parts in ({name: (name,) for name in names} | combinations).items():
        scores = matrix[:, [names.index(part) for part in parts]]
        values = combine(parts, scores) if name == "combined" else plain(scores)
        undefined = int(np.isnan(scores).any(axis=1).sum())
        yield (
            f"{name:18}{with_intervals(values, truth)} {with_intervals(values[best], truth[best])}"
            f"{undefined:6}{alone(how, parts, timed):9.3f}"
        )
        if name == "combined":
            found = silent(parts, scores)
            voted = ", ".join(part for part in parts if part not in found)
            yield f"combined: {voted}; without a vote: {found or 'none'}"
            yield f"without a vote in the best quarter: {silent_among_best(parts, scores) or 'none'}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, score what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cells", "mobilenet"))
    parser.add_argument("--images", type=Path, required=True, help="the folder of cifar10.npz")
    parser.add_argument("--truth", type=Path, help="of the cells")
    parser.add_argument("--networks", type=int, default=600, help="how many cells (default %(default)s)")
    parser.add_argument("--skip", type=int, default=0, help="other cells than the first so many")
    parser.add_argument("--scores", default="all", help="all, combined, or names separated by commas")
    parser.add_argument("--batch", type=int, default=16, help="images a draw (default %(default)s)")
    parser.add_argument("--draws", type=int, default=4, help="of initial weights (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cache", type=Path, help="default: zero_shot_WHAT.jsonl")
    options = parser.parse_args(arguments)
    if options.what == "cells":
        if options.truth is None:
            parser.error("cells need --truth")
        networks, space, given = read_cells(options.truth, options.networks, options.skip), "nasbench201", {}
    else:
        networks, space, given = read_mobile_networks(), "mobilenetv3", read_settings()["space"]
    chosen = options.scores if options.scores == "combined" else options.scores.split(",")
    names = tuple(SCORES) if options.scores == "all" else score_names(chosen)
    how = scoring(space, given, names, options)
    cache = options.cache or Path(f"zero_shot_{options.what}.jsonl")
    for line in report(how, networks, scored(how, [arch for arch, _ in networks], cache, options.workers)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
