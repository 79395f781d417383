"""How many trainings does each sampler need for the true front of NAS-Bench-201?

    python benchmarks/search_quality.py --truth nb201_cifar10.csv.gz --runs nb201_cifar10_runs.csv.gz \\
        --latency nb201_latency_ms.csv.gz

`--truth`: `index`, `ops` (six digits) and the mean test accuracy of every cell, in the column `--accuracy`; `--runs`:
`index` and the validation accuracy of single trainings, in `--observed`; `--latency`: `index` and milliseconds, a
column for each device. Cells that are one network (`canonical`) count once.

A search sees the validation accuracy of one training (which of a cell's runs, follows from the seed) and the latency,
and is judged by the mean test accuracy of all that it had evaluated: the share of the true front's hypervolume, with
both objectives scaled from the least to the most of all cells (min-max) or of the true front (nadir), the reference
point at the worse end; IGD+ on the second scale (Ishibuchi et al. 2015); and the mean regret of the best cell under
each of 15 latency limits, in percent of accuracy. Cells that a sampler asks for again cost nothing.

Our zero-shot scores of all cells are in `--scores` (benchmarks/data/README.md says how they were made and what they
cost). Results: `benchmarks/data/README.md`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import multiprocessing
import platform
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from hwnas.errors import InfeasibleError
from hwnas.ranks import average_ranks
from hwnas.search.known import Known
from hwnas.search.pareto import hypervolume, nondominated
from hwnas.search.problem import FloatMatrix, FloatVector, Objective
from hwnas.search.samplers import SAMPLERS, make_sampler
from hwnas.search.study import ask_arch, record_trial
from hwnas.space import IntMatrix
from hwnas.spaces import make_space

SPACE = make_space("nasbench201", {})
OBJECTIVES = (Objective("accuracy", "%", "maximize"), Objective("latency", "ms", "minimize"))
DEVICES = ("gold_6240", "pixel3", "samsung_a50", "1080ti_1", "titan_rtx_32", "2080ti_256")
MARKS = (10, 14, 20, 40, 60, 100)
SHARES = (0.98, 0.99, 0.999)
LIMITS = 15
# label -> sampler, whether it has the zero-shot scores, how many cells are asked for at once, options
METHODS: dict[str, tuple[str, bool, int, dict[str, Any]]] = {
    "random": ("random", False, 1, {}),
    "NSGA-II 20": ("NSGAIISampler", False, 1, {"population_size": 20}),
    "NSGA-II 50": ("NSGAIISampler", False, 1, {"population_size": 50}),
    "NSGA-II 100": ("NSGAIISampler", False, 1, {"population_size": 100}),
    "NSGA-III 20": ("NSGAIIISampler", False, 1, {"population_size": 20}),
    "TPE": ("TPESampler", False, 1, {}),
    "evolution": ("evolution", False, 1, {}),
    "local": ("local", False, 1, {}),
    "lemonade": ("lemonade", False, 1, {}),
    "surrogate, no scores": ("surrogate", False, 1, {}),
    "surrogate, batches of 5": ("surrogate", True, 5, {}),
    "surrogate": ("surrogate", True, 1, {}),
}


@dataclass(frozen=True)
class Cells:
    """The distinct cells: archs (n, 6), test accuracies (n,), single runs (n, most runs; NaN), latency and scores."""

    archs: IntMatrix
    accuracy: FloatVector
    runs: FloatMatrix
    latency: FloatVector
    ranks: FloatMatrix

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(5^6,) the row of a cell by its digits read as a number."""
        rows = np.full(5**6, -1)
        rows[_number(self.archs)] = np.arange(len(self.archs))
        return rows

    def row(self, archs: IntMatrix) -> NDArray[np.int64]:
        """(n, 6) -> (n,) rows."""
        found: NDArray[np.int64] = self.rows[_number(archs)]
        return found

    def observed(self, seed: int) -> FloatVector:
        """(n,) what one training of each cell would show."""
        count = (~np.isnan(self.runs)).sum(axis=1)
        picked = (np.random.default_rng(seed).random(len(count)) * count).astype(np.int64)
        found: FloatVector = self.runs[np.arange(len(count)), picked]
        return found


class Judge:
    """Scores the cells that a search has evaluated."""

    def __init__(self, cells: Cells) -> None:
        self._losses = np.column_stack([-cells.accuracy, cells.latency])
        front = self._losses[nondominated(self._losses)]
        self._scales = [(points.min(axis=0), np.ptp(points, axis=0)) for points in (self._losses, front)]
        self._whole = [hypervolume((front - low) / extent, np.ones(2)) for low, extent in self._scales]
        self._front = (front - self._scales[1][0]) / self._scales[1][1]
        limits = np.quantile(cells.latency, np.linspace(0.02, 0.98, LIMITS))
        self._within = cells.latency[:, None] <= limits
        self._oracle = np.array([cells.accuracy[within].max() for within in self._within.T])
        self._accuracy = cells.accuracy

    def __call__(self, rows: NDArray[np.int64]) -> tuple[float, float, float, float]:
        """Min-max share, nadir share, IGD+, constrained regret of these cells together."""
        points = self._losses[rows]
        shares = [
            hypervolume((points - low) / extent, np.ones(2)) / whole
            for (low, extent), whole in zip(self._scales, self._whole, strict=True)
        ]
        low, extent = self._scales[1]
        behind = np.maximum((points - low) / extent - self._front[:, None], 0)
        igd = float(np.linalg.norm(behind, axis=2).min(axis=1).mean())
        best = np.where(self._within[rows], self._accuracy[rows, None], self._accuracy.min()).max(axis=0)
        return shares[0], shares[1], igd, float((self._oracle - best).mean())


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a compressed table."""
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def _number(archs: IntMatrix) -> NDArray[np.int64]:
    found: NDArray[np.int64] = archs @ 5 ** np.arange(5, -1, -1)
    return found


def load(options: argparse.Namespace, device: str) -> Cells:
    """The distinct cells with the latency of a device."""
    truth = {row["index"]: row for row in read(options.truth)}
    archs = {index: [int(digit) for digit in row["ops"]] for index, row in truth.items()}
    canonical = SPACE.canonical(np.array(list(archs.values())))
    kept = [index for index, arch, own in zip(archs, archs.values(), canonical.tolist(), strict=True) if arch == own]
    runs: dict[str, list[float]] = {}
    for row in read(options.runs):
        runs.setdefault(row["index"], []).append(float(row[options.observed]))
    most = max(len(found) for found in runs.values())
    ms = {row["index"]: float(row[device]) for row in read(options.latency)}
    scores = {row["ops"]: list(row.values())[1:] for row in read(options.scores)}
    matrix = np.array([[float(value) if value else -np.inf for value in scores[truth[index]["ops"]]] for index in kept])
    return Cells(
        archs=np.array([archs[index] for index in kept]),
        accuracy=np.array([float(truth[index][options.accuracy]) for index in kept]),
        runs=np.array([runs[index] + [np.nan] * (most - len(runs[index])) for index in kept]),
        latency=np.array([ms[index] for index in kept]),
        ranks=np.apply_along_axis(average_ranks, 0, matrix) / len(matrix),
    )


def search(cells: Cells, method: str, seed: int, evaluations: int) -> NDArray[np.int64]:
    """The cells that a sampler has evaluated, in order; fewer if it finds no new ones."""
    name, scored, batch, options = METHODS[method]
    known = Known(
        SPACE,
        OBJECTIVES,
        {"latency": lambda archs: cells.latency[cells.row(archs)]},
        prior=(lambda archs: cells.ranks[cells.row(archs)]) if scored else None,
    )
    # one seed for all methods would start them from the same cells, and make their errors one
    mixed = zlib.crc32(f"{method} {seed}".encode()) % 2**31
    observed = cells.observed(seed)
    sampler = make_sampler(name, mixed, known if name in SAMPLERS else None, **options)
    study = optuna.create_study(directions=[objective.direction for objective in OBJECTIVES], sampler=sampler)
    found: list[int] = []
    while len(found) < evaluations:
        asked = []
        for _ in range(min(batch, evaluations - len(found))):
            try:
                trial, arch = ask_arch(study, SPACE)
            except InfeasibleError:  # converged
                return np.array(found)
            asked.append((trial, arch, int(cells.row(np.array([arch]))[0])))
        for trial, arch, row in asked:
            record_trial(study, SPACE, arch, [float(observed[row]), float(cells.latency[row])], trial=trial)
            found.append(row)
    return np.array(found)


def curves(options: argparse.Namespace, device: str, task: tuple[str, int]) -> tuple[FloatMatrix, float]:
    """(evaluations, 4) what the judge says after each evaluation, and the seconds of an evaluation."""
    cells, judge = _loaded(options, device)
    method, seed = task
    started = time.process_time()
    rows = search(cells, method, seed, options.evaluations)
    seconds = (time.process_time() - started) / len(rows)
    points = np.array([judge(rows[: count + 1]) for count in range(len(rows))])
    return np.concatenate([points, np.repeat(points[-1:], options.evaluations - len(points), axis=0)]), seconds


_cells: dict[str, tuple[Cells, Judge]] = {}


def _loaded(options: argparse.Namespace, device: str) -> tuple[Cells, Judge]:
    if device not in _cells:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        cells = load(options, device)
        _cells[device] = cells, Judge(cells)
    return _cells[device]


def with_interval(seeds: FloatVector, digits: int) -> str:
    """The mean over seeds, and half of the interval of 95% of that mean."""
    half = 1.96 * seeds.std(ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else np.nan
    return f"{seeds.mean():.{digits}f} ±{half:.{digits}f}"


def needed(mean: FloatVector, share: float) -> str:
    """After how many evaluations the mean share is reached."""
    reached = np.flatnonzero(mean >= share)
    return str(int(reached[0]) + 1) if len(reached) else f"> {len(mean)}"


def table(found: dict[str, tuple[FloatMatrix, float]], evaluations: int) -> Iterator[str]:
    """(seeds, evaluations, 4) means over devices of each method, as lines."""
    marks = [mark for mark in MARKS if mark <= evaluations]
    yield f"{'min-max share of the hypervolume':26} needed for {'  '.join(f'{share:.1%}' for share in SHARES)} | after"
    yield f"{'':26}{'':31}" + "".join(f"{mark:>16}" for mark in marks)
    for method, (each, _) in found.items():
        counts = "".join(f"{needed(each[:, :, 0].mean(axis=0), share):>8}" for share in SHARES)
        yield f"{method:26}{counts:>31}" + "".join(f"{with_interval(each[:, m - 1, 0], 4):>16}" for m in marks)
    yield ""
    yield f"{'nadir share after':26}" + "".join(f"{mark:>16}" for mark in marks)
    for method, (each, _) in found.items():
        yield f"{method:26}" + "".join(f"{with_interval(each[:, mark - 1, 1], 4):>16}" for mark in marks)
    yield ""
    last = f"after {evaluations}"
    yield f"{last:26}{'IGD+':>18}{'regret, % accuracy':>20}{'s of CPU each':>15}"
    for method, (each, seconds) in found.items():
        yield (
            f"{method:26}{with_interval(each[:, -1, 2], 4):>18}{with_interval(each[:, -1, 3], 3):>20}{seconds:15.3f}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, search, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--latency", type=Path, required=True)
    parser.add_argument("--accuracy", default="c10_test_200", help="a column of the truth (default %(default)s)")
    parser.add_argument("--observed", default="c10_valid_200", help="a column of the runs (default %(default)s)")
    parser.add_argument("--scores", type=Path, default=Path(__file__).parent / "data" / "nb201_scores.csv.gz")
    parser.add_argument("--devices", default=",".join(DEVICES), help="columns of the latencies (default %(default)s)")
    parser.add_argument("--methods", default="|".join(METHODS), help="separated by | (default: all)")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args(arguments)
    methods, devices = options.methods.split("|"), options.devices.split(",")
    if unknown := sorted(set(methods) - set(METHODS)):
        parser.error(f"unknown methods {unknown}; there are {list(METHODS)}")
    started = time.monotonic()
    tasks = [(method, seed) for method in methods for seed in range(options.seeds)]
    parts: dict[str, list[FloatMatrix]] = {method: [] for method in methods}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for device in devices:
            results = list(pool.map(partial(curves, options, device), tasks))
            for method in methods:
                own = [result for (name, _), result in zip(tasks, results, strict=True) if name == method]
                parts[method].append(np.array([points for points, _ in own]))
                seconds[method] += [each for _, each in own]
            print(f"{device}: done after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    found = {
        method: (np.mean(np.array(parts[method]), axis=0), float(np.median(seconds[method]))) for method in methods
    }
    print(f"{platform.processor() or platform.machine()}, {options.seeds} seeds, means of {', '.join(devices)}")
    print(f"search sees {options.observed} of one run, is judged by {options.accuracy}; intervals: 95% over seeds\n")
    for line in table(found, options.evaluations):
        print(line)


if __name__ == "__main__":
    main()
