"""Search without training on NAS-Bench-201: how accurate is what is found under a latency limit?

    python benchmarks/zero_shot_search.py --truth nb201_cifar10.csv.gz --latency nb201_latency_ms.csv.gz --images images

`--truth` as of `zero_shot.py`; `--latency` has measured milliseconds of the same cells (joined by `index`), a column
for each device, of which `--device` is searched for. Under each of `--limits` limits, from the fastest to nearly the
slowest cells, our search scores `--evaluations` cells; the one ranked best, and the best of the five ranked best (which
a user would train), are compared with the most accurate cell within the limit (the oracle). The same search with the
number of parameters as its score, and random cells within the limit (the mean over all of them), are beside it. Regret:
percent of test accuracy below the oracle. Results: `benchmarks/data/README.md`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.scored import rank
from hwnas.search.assisted import assisted_search
from hwnas.search.known import Known
from hwnas.search.problem import Objective
from hwnas.space import IntMatrix, rows_of
from hwnas.spaces import make_space
from hwnas.zeroshot import COMBINED
from zero_shot import FloatMatrix, FloatVector, scored, scoring

TRAINED = 5
SPACE = make_space("nasbench201", {})


def read(path: Path, column: str, key: str) -> dict[str, str]:
    """Two columns of a table, as text."""
    with gzip.open(path, "rt", newline="") as file:
        return {row[key]: row[column] for row in csv.DictReader(file)}


def by_cell(ops: dict[str, str], values: dict[str, str]) -> FloatVector:
    """(5^6,) values by the cell's six digits read as a number."""
    table = np.full(5**6, np.nan)
    for index, digits in ops.items():
        table[int(digits, 5)] = float(values[index])
    return table


def numbers(archs: IntMatrix) -> NDArray[np.int64]:
    """(n, 6) cells -> (n,) their six digits read as a number."""
    found: NDArray[np.int64] = archs @ 5 ** np.arange(5, -1, -1)
    return found


def expected_best(accuracies: FloatVector, k: int) -> float:
    """The expected best accuracy of k different cells drawn from these."""
    ascending, n = np.sort(accuracies), len(accuracies)
    k = min(k, n)
    chances = np.array([math.comb(i, k - 1) / math.comb(n, k) if i >= k - 1 else 0.0 for i in range(n)])
    return float(ascending @ chances)


def columns(regrets: FloatMatrix) -> str:
    """(2, 3) regrets as text."""
    return " |".join(f"{combined:10.2f}{params:8.2f}{random:8.2f}" for combined, params, random in regrets)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, search under every limit, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--latency", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="the folder of cifar10.npz")
    parser.add_argument("--device", default="gold_6240", help="a column of the latencies (default %(default)s)")
    parser.add_argument("--limits", type=int, default=15)
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cache", type=Path, default=Path("zero_shot_search.jsonl"))
    options = parser.parse_args(arguments)
    ops = read(options.truth, "ops", "index")
    accuracy = by_cell(ops, read(options.truth, "c10_test_200", "index"))
    ms = by_cell(ops, read(options.latency, options.device, "index"))
    how = scoring("nasbench201", {}, COMBINED, options)
    every = np.unique(SPACE.canonical(np.array([[int(d) for d in digits] for digits in ops.values()])), axis=0)

    def zero_shot(archs: IntMatrix) -> FloatMatrix:
        rows = rows_of(archs)
        known = scored(how, rows, options.cache, options.workers)
        return np.array([[known[arch]["scores"][name] for name in COMBINED] for arch in rows], dtype=np.float64)

    def size(archs: IntMatrix) -> FloatMatrix:
        return np.array([[float(sum(block.params for block in SPACE.blocks(arch)))] for arch in rows_of(archs)])

    def latency(archs: IntMatrix) -> FloatVector:
        found: FloatVector = ms[numbers(archs)]
        return found

    def regrets(
        names: Sequence[str], evaluate: Callable[[IntMatrix], FloatMatrix], limit: float, oracle: float
    ) -> list[float]:
        objectives = (Objective("score", "", "maximize"), Objective("latency", "ms", "minimize", limit))
        known = Known(SPACE, objectives, {"latency": latency})
        evaluations, seed, by_rank = options.evaluations, options.seed, partial(rank, names)
        archs = assisted_search(known, evaluate, evaluations=evaluations, seed=seed, rank=by_rank)
        order = np.argsort(-np.nan_to_num(by_rank(evaluate(archs)), nan=-np.inf), kind="stable")
        found = accuracy[numbers(archs[order])]
        return [oracle - found[0], oracle - found[:TRAINED].max()]

    limits = np.quantile(ms[numbers(every)], np.linspace(0.02, 0.98, options.limits))
    print(f"{options.device}, {options.evaluations} cells scored under each limit, by {', '.join(COMBINED)}")
    names = f"{'combined':>10}{'params':>8}{'random':>8}"
    print(f"{'':18}{'regret of the best ranked':>26} |{f'of the best of {TRAINED}':>26}")
    print(f"{'limit ms':>10}{'oracle':>8}{names} |{names}")
    rows, started = [], time.monotonic()
    for limit in limits:
        within = accuracy[numbers(every[latency(every) <= limit])]
        oracle = float(within.max())
        combined = regrets(COMBINED, zero_shot, limit, oracle)
        params = regrets(("params",), size, limit, oracle)
        random = [oracle - expected_best(within, k) for k in (1, TRAINED)]
        rows.append(np.array([combined, params, random]).T)  # the best ranked, the best of some
        print(f"{limit:10.3f}{oracle:8.2f}{columns(rows[-1])}", flush=True)
    print(f"{'mean':>10}{'':8}{columns(np.mean(rows, axis=0))}   ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
