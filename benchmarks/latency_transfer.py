"""How well a few measured networks tell the latency of a space on a new device, against simpler ways to tell it.

    python benchmarks/latency_transfer.py TABLE.csv.gz --arch-columns ops --shots 3,10,50
    python benchmarks/latency_transfer.py TABLE.csv --arch-columns op00..op21 --families 'titanx.*=titanx' 'sam.*=phone'

TABLE has a row per architecture; the architecture's columns hold digits (`ops` = 430121) or one value each
(`op00..op21`); every other column is a device, but for those named by --ignore. Each device in turn is the target, and
no device of its family is among its sources. All methods but the first get their better of two choices of networks:
those that ours chose, and random ones (by mean error, for each k), and of two forms: logarithms and ms.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import ConstantInputWarning, spearmanr

from hwnas.errors import DataError, HwnasError
from hwnas.latency.features import one_hot
from hwnas.latency.pool import Pool
from hwnas.latency.shots import choose_shots
from hwnas.latency.transfer import fit_transfer, learn_prior

Matrix = NDArray[np.float64]
OURS = "transfer"
_ALPHAS = 10.0 ** np.arange(-6, 5.1, 0.5)
_TEST = 2000


def read_table(path: Path, arch_columns: list[str], ignore: list[str]) -> tuple[NDArray[np.int64], Matrix, list[str]]:
    """(n, slots) option indices, (n, devices) ms, device names. Slots in which all agree are left out."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        header, *rows = list(csv.reader(file))
    wanted = [name for column in arch_columns for name in _expand(column, header)]
    devices = [name for name in header if name not in {*wanted, *ignore}]
    texts = [[row[header.index(name)] for name in wanted] for row in rows]
    single = len(wanted) > 1 and max(len(text) for row in texts for text in row) <= 2
    slots = np.array([row if single else list("".join(row)) for row in texts], dtype=np.int64)
    columns = [np.unique(column, return_inverse=True)[1] for column in slots.T if len(np.unique(column)) > 1]
    ms = np.array([[float(row[header.index(name)]) for name in devices] for row in rows])
    return np.stack(columns, axis=1), ms, devices


def _expand(column: str, header: list[str]) -> list[str]:
    first, _, last = column.partition("..")
    for name in filter(None, (first, last)):
        if name not in header:
            raise DataError(f"the table has no column {name!r}; its columns: {', '.join(header)}")
    return header[header.index(first) : header.index(last) + 1] if last else [first]


def family(device: str, rules: list[str]) -> str:
    """The family of a device: the first rule REGEX=FAMILY that matches its whole name, else the name before _BATCH."""
    for rule in rules:
        pattern, _, name = rule.rpartition("=")
        if re.fullmatch(pattern, device):
            return name
    return re.sub(r"_\d+$", "", device)


def ridge(design: Matrix, values: Matrix, asked: Matrix) -> Matrix:
    """Ridge regression whose penalty has the least error on values left out."""
    mean, sd = design.mean(axis=0), np.maximum(design.std(axis=0), 1e-9)
    left, size, right = np.linalg.svd((design - mean) / sd, full_matrices=False)
    level = values.mean()
    best, weights = np.inf, np.zeros(design.shape[1])
    for alpha in _ALPHAS * len(values):
        shrink = size**2 / (size**2 + alpha)
        leverage = (left**2 * shrink).sum(axis=1) + 1 / len(values)
        fitted = level + left @ (shrink * (left.T @ (values - level)))
        error = float((((values - fitted) / np.maximum(1 - leverage, 1e-6)) ** 2).mean())
        if error < best:
            best, weights = error, right.T @ (size / (size**2 + alpha) * (left.T @ (values - level)))
    return np.asarray((asked - mean) / sd @ weights + level)


def nearest(design: Matrix, values: Matrix, asked: Matrix) -> Matrix:
    """The column best correlated with the values, affinely scaled."""
    centred = design - design.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=0))
    like = centred.T @ (values - values.mean()) / np.maximum(spread, 1e-12)
    best = int(np.argmax(like))
    slope = like[best] / max(spread[best], 1e-12)
    return np.asarray(values.mean() + slope * (asked[:, best] - design[:, best].mean()))


def baselines(pool: Pool) -> dict[str, tuple[Matrix, Callable[[Matrix, Matrix, Matrix], Matrix]]]:
    """Name -> (features of the pool, method)."""
    options = one_hot(pool.archs, np.asarray(pool.options))
    found: dict[str, tuple[Matrix, Callable[[Matrix, Matrix, Matrix], Matrix]]] = {"additive ridge": (options, ridge)}
    if pool.source_ms.shape[1]:
        found |= {"source ridge": (np.log(pool.source_ms), ridge), "nearest device": (np.log(pool.source_ms), nearest)}
        found |= {
            f"{name}, ms": (pool.source_ms, method)
            for name, method in (("source ridge", ridge), ("nearest device", nearest))
        }
    return found


def judge(predicted: Matrix, measured: Matrix) -> dict[str, float]:
    """Mean relative error, Spearman's rank correlation, share within 10 %."""
    error = np.abs(predicted / measured - 1)
    rank = spearmanr(predicted, measured)[0]
    return {"error": float(error.mean()), "rank": float(np.nan_to_num(rank)), "within": float((error <= 0.1).mean())}


def trial(pool: Pool, target_ms: Matrix, shots: list[int], seeds: int) -> list[dict[str, object]]:
    """One target: a record per k, seed, method and choice of networks."""
    records: list[dict[str, object]] = []
    prior = learn_prior(pool, np.random.default_rng(0))
    simple = baselines(pool)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        chosen = choose_shots(prior, max(shots), rng)
        drawn = rng.permutation(len(pool))[: max(shots)]
        for k in shots:
            # Same test networks for all methods, measured by none.
            used = np.concatenate([chosen[:k], drawn[:k]])
            test = np.setdiff1d(rng.choice(len(pool), min(_TEST, len(pool)), replace=False), used)
            asked, measured = pool.take(test), target_ms[test]
            started = time.perf_counter()
            model = fit_transfer(prior, chosen[:k], target_ms[chosen[:k]])
            found = judge(model.predict_ms(asked), measured)
            low, high = model.interval_ms(0.9, asked)
            found["covered"] = float(((low <= measured) & (measured <= high)).mean())
            found["below"] = float((measured <= model.upper_ms(0.95, asked)).mean())
            found["width"] = float(np.median(high / low) - 1)
            found["seconds"] = time.perf_counter() - started
            records.append({"k": k, "method": OURS, "choice": "chosen", **found})
            for name, (features, method) in simple.items():
                for choice, rows in (("chosen", chosen[:k]), ("random", drawn[:k])):
                    values = target_ms[rows] if name.endswith("ms") else np.log(target_ms[rows])
                    guess = method(features[rows], values, features[test])
                    # A straight line can cross zero; a tenth of the least measured is kinder than a negative time.
                    guess = np.maximum(guess, values.min() / 10) if name.endswith("ms") else np.exp(guess.clip(-30, 30))
                    records.append(
                        {"k": k, "method": name.removesuffix(", ms"), "choice": name + choice, **judge(guess, measured)}
                    )
    return records


def summary(records: list[dict[str, object]], k: int, method: str) -> dict[str, float]:
    """Means over targets and seeds, of the choice and form with the least error."""
    groups = defaultdict(list)
    for record in records:
        if record["k"] == k and record["method"] == method:
            groups[record["choice"]].append(record)
    names = [name for name in next(iter(groups.values()))[0] if name not in {"k", "method", "choice", "target"}]
    means = [{name: float(np.mean([record[name] for record in group])) for name in names} for group in groups.values()]
    best = min(means, key=lambda mean: mean["error"])
    # The best rank may be that of another choice: each number is the kindest to its method.
    return best | {"rank": max(mean["rank"] for mean in means), "within": max(mean["within"] for mean in means)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--arch-columns", nargs="+", required=True, help="columns of digits, or a range op00..op21")
    parser.add_argument("--ignore", nargs="*", default=["index"], help="columns that are neither (default: index)")
    parser.add_argument("--families", nargs="*", default=[], metavar="REGEX=FAMILY")
    parser.add_argument("--targets", help="a regular expression of devices to treat as targets (default: all)")
    parser.add_argument("--shots", default="3,5,10,20,30,50,100")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-target", action="store_true")
    arguments = parser.parse_args()
    shots = [int(part) for part in arguments.shots.split(",")]
    archs, ms, devices = read_table(arguments.table, arguments.arch_columns, arguments.ignore)
    options = archs.max(axis=0) + 1
    families = [family(device, arguments.families) for device in devices]
    console, records = Console(width=140), []
    warnings.simplefilter("ignore", ConstantInputWarning)
    for column, device in enumerate(devices):
        if arguments.targets and not re.fullmatch(arguments.targets, device):
            continue
        sources = [other for other, name in enumerate(families) if name != families[column]]
        pool = Pool(archs, options, ms[:, sources], tuple(devices[other] for other in sources))
        found = trial(pool, ms[:, column], shots, arguments.seeds)
        records += found
        if arguments.per_target:
            parts = []
            for k in shots:
                mean = summary(found, k, OURS)
                parts.append(f"k={k} {mean['error']:.1%} {mean['rank']:.3f} {mean['covered']:.0%}")
            console.print(f"{device} ({families[column]}, {len(sources)} sources): " + " | ".join(parts))
    if not records:
        raise DataError(f"no device of {', '.join(devices)} matches --targets {arguments.targets!r}")
    console.print(_report(records, shots))


def _report(records: list[dict[str, object]], shots: list[int]) -> Table:
    table = Table("k", "method", "mean error", "Spearman", "within 10 %", "90 % covers", "95 % bound", "width", "fit s")
    for k in shots:
        for method in (OURS, *sorted({str(record["method"]) for record in records} - {OURS})):
            mean = summary(records, k, method)
            row = [str(k), method, f"{mean['error']:.2%}", f"{mean['rank']:.3f}", f"{mean['within']:.1%}"]
            if method == OURS:
                row += [f"{mean['covered']:.1%}", f"{mean['below']:.1%}", f"{mean['width']:.1%}"]
                row += [f"{mean['seconds']:.1f}"]
            table.add_row(*row, end_section=False, style="bold" if method == OURS else None)
        table.add_section()
    return table


if __name__ == "__main__":
    try:
        main()
    except HwnasError as error:
        sys.exit(f"error: {error}")
