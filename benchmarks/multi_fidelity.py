"""How much training do rules that stop trainings save, and what does it cost? On NAS-Bench-201, and on real curves.

    python benchmarks/multi_fidelity.py table --truth nb201_cifar10.csv.gz --latency nb201_latency_ms.csv.gz
    python benchmarks/multi_fidelity.py curves

`table` simulates searches for accurate and fast cells on the public table: random proposals, and NSGA-II's (population
20, only finished trainings are parents). Of a training the table has the CIFAR-10 validation accuracies at 12 and at
200 epochs, so 12 of 200 epochs is the one rung, and it costs 12/200 of the training's seconds. Beware: the 12-epoch
accuracies are of trainings with a complete schedule of their own of 12 epochs, not of the first 12 of 200 epochs; they
rank the ends better than a point on the way would. Hypervolume is that of the finished cells in percent of the true
front's, both objectives scaled from the ideal (0) to the nadir point (1) of that front. "Equal seconds" is what
`--trials` trainings to the end take on the average. Means over devices, and 95% intervals over seeds.

`curves` replays the rules on random orders of small networks that `multi_fidelity_curves.py` trained on Fashion-MNIST;
their curves are in `data/multi_fidelity_curves.jsonl`. With `--images`, the folder of torchvision's FashionMNIST, it
trains first what the file `--curves` lacks of `--networks`: about ten minutes of one core for all 40. Saved is the
share of epochs; a training was stopped wrongly if its end would have been on the front of those that finished; lost is
the share of the hypervolume of all, with the worst of all networks as reference. Medians and 95% ranges over orders.
For comparison, `at random` stops three of five after a quarter of the epochs, and `latest value` stops what is below a
finished network at most as large after the same epoch.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwnas.search.fidelity import make_stopper
from hwnas.search.fidelity.replay import replay
from hwnas.search.fidelity.stopper import Decision, Stopper, Training
from hwnas.search.pareto import crowding_distance, hypervolume, nondominated, nondominated_ranks
from hwnas.search.problem import FloatMatrix, FloatVector, Objective
from multi_fidelity_curves import EPOCHS, read_curves, record_curves

CURVES = Path(__file__).parent / "data" / "multi_fidelity_curves.jsonl"
RUNG, LAST = 12, 200
POPULATION = 20
Rows = NDArray[np.int64]
TABLE_RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "halving, eta 2": ("successive_halving", {"eta": 2, "min_epochs": RUNG}),
    "halving, eta 3": ("successive_halving", {"eta": 3, "min_epochs": RUNG}),
    "halving, eta 4": ("successive_halving", {"eta": 4, "min_epochs": RUNG}),
    # the one eta whose bracket 1 has its rung at 12 of 200 epochs
    "hyperband, eta 17": ("hyperband", {"eta": 17, "min_epochs": RUNG - 1}),
    "curves, chance 0.05": ("curve_ranking", {"chance": 0.05, "min_epochs": RUNG}),
    "curves, chance 0.1": ("curve_ranking", {"chance": 0.1, "min_epochs": RUNG}),
    "curves, chance 0.2": ("curve_ranking", {"chance": 0.2, "min_epochs": RUNG}),
}
CURVE_RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "halving, eta 2, from 1": ("successive_halving", {"eta": 2, "min_epochs": 1}),
    "halving, eta 3, from 1": ("successive_halving", {"eta": 3, "min_epochs": 1}),
    "halving, eta 3, from 2": ("successive_halving", {"eta": 3, "min_epochs": 2}),
    "halving, eta 2": ("successive_halving", {}),
    "halving, eta 3": ("successive_halving", {"eta": 3}),
    "halving, epsilon net": ("successive_halving", {"spread": "epsilon_net"}),
    "hyperband, eta 2, from 1": ("hyperband", {"eta": 2, "min_epochs": 1}),
    "hyperband, eta 3, from 1": ("hyperband", {"eta": 3, "min_epochs": 1}),
    "hyperband, eta 2": ("hyperband", {}),
    "hyperband, eta 3": ("hyperband", {"eta": 3}),
    "curves, chance 0.05": ("curve_ranking", {"chance": 0.05}),
    "curves, chance 0.1": ("curve_ranking", {"chance": 0.1}),
    "curves, chance 0.2": ("curve_ranking", {"chance": 0.2}),
}


class Cells(NamedTuple):
    """The table: (n, 6) operations, (n,) accuracies in percent, seconds of 200 epochs, milliseconds on one device."""

    ops: Rows
    short: FloatVector
    final: FloatVector
    seconds: FloatVector
    ms: FloatVector


@dataclass(frozen=True)
class Searched:
    """Hypervolume in percent and seconds after `trials` trainings; hypervolume and trainings after `budget_s`."""

    at_trials: float
    seconds: float
    at_budget: float
    trainings: int
    stopped: int
    wrong: int


class AtRandom:
    """Stops three of five after a quarter of the epochs, whatever they are: orders being random, at random."""

    def __init__(self, *, max_epochs: int) -> None:
        self.max_epochs = max_epochs

    def decide(self, training: Training, others: Sequence[Training], objectives: Sequence[Objective]) -> Decision:
        """Look at the number only."""
        return Decision(training.epochs == self.max_epochs // 4 and training.number % 5 < 3, "at random")


class LatestValue:
    """Stops what is now below where a finished network, at most as large, was after the same epoch."""

    def __init__(self, *, max_epochs: int) -> None:
        self.max_epochs = max_epochs

    def decide(self, training: Training, others: Sequence[Training], objectives: Sequence[Objective]) -> Decision:
        """Compare the latest values."""
        epoch, macs = training.epochs, training.known["multiply-adds"]
        smaller = [one for one in others if one.finished and one.known["multiply-adds"] <= macs]
        return Decision(any(one.value_at(epoch) > training.value_at(epoch) for one in smaller), "latest values")


def read_cells(truth: Path, latency: Path, device: str) -> Cells:
    """Both tables, whose rows are in the same order."""
    with gzip.open(truth, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    with gzip.open(latency, "rt", newline="") as file:
        times = list(csv.DictReader(file))
    if [row["index"] for row in rows] != [row["index"] for row in times]:
        raise SystemExit(f"{truth} and {latency} do not list the same cells in the same order")
    if device not in times[0]:
        raise SystemExit(f"{latency} has no device {device!r}; it has {', '.join(list(times[0])[1:])}")
    columns = ("c10_valid_12", "c10_valid_200", "train_seconds_200_c10valid")
    short, final, seconds = (np.array([float(row[column]) for row in rows]) for column in columns)
    ops = np.array([[int(digit) for digit in row["ops"]] for row in rows])
    return Cells(ops, short, final, seconds, np.array([float(row[device]) for row in times]))


def scaled_losses(cells: Cells) -> FloatMatrix:
    """(n, 2) error and latency, 0 at the ideal and 1 at the nadir point of the true front."""
    losses = np.column_stack([-cells.final, cells.ms])
    front = losses[nondominated(losses)]
    low, high = front.min(axis=0), front.max(axis=0)
    scaled: FloatMatrix = (losses - low) / (high - low)
    return scaled


def random_proposals(cells: Cells, losses: FloatMatrix, finished: list[int], rng: np.random.Generator) -> Iterator[int]:
    """Cells in random order."""
    yield from rng.permutation(len(cells.ops)).tolist()


def evolved_proposals(
    cells: Cells, losses: FloatMatrix, finished: list[int], rng: np.random.Generator
) -> Iterator[int]:
    """NSGA-II (Deb et al. 2002) one child at a time: the best `POPULATION` of `finished`, which grows, are parents."""
    row_of = {tuple(ops): row for row, ops in enumerate(cells.ops.tolist())}
    order: list[int] = rng.permutation(len(cells.ops)).tolist()
    seen = set[int]()

    def fresh() -> int:
        return next(row for row in order if row not in seen)

    while True:
        row = fresh()
        if len(seen) >= POPULATION and len(finished) >= 2:
            rank = nondominated_ranks(losses[finished])
            best = np.lexsort((-crowding_distance(losses[finished], rank), rank))[:POPULATION]
            for _ in range(50):
                first, second = (best[rng.integers(len(best), size=2).min()] for _ in range(2))  # tournaments of two
                one, other = cells.ops[finished[first]], cells.ops[finished[second]]
                child = np.where(rng.random(6) < 0.5, one, other)
                child = np.where(rng.random(6) < 1 / 6, rng.integers(5, size=6), child)
                born = row_of.get(tuple(child.tolist()))
                if born is not None and born not in seen:
                    row = born
                    break
        seen.add(row)
        yield row


PROPOSALS: dict[str, Callable[[Cells, FloatMatrix, list[int], np.random.Generator], Iterator[int]]] = {
    "random": random_proposals,
    "NSGA-II": evolved_proposals,
}


def search(
    cells: Cells, losses: FloatMatrix, proposals: str, stopper: Stopper, seed: int, trials: int, budget_s: float
) -> Searched:
    """One search, until it has both begun `trials` trainings and spent `budget_s` seconds."""
    objectives = (Objective("accuracy", "%", "maximize"), Objective("latency", "ms", "minimize"))
    trainings, finished, rows, spent = list[Training](), list[int](), list[int](), [0.0]
    ended: list[int] = []  # how many had finished after each training
    for row in PROPOSALS[proposals](cells, losses, finished, np.random.default_rng(seed)):
        begun = Training(
            len(rows), {"latency": float(cells.ms[row])}, (*(np.nan,) * (RUNG - 1), float(cells.short[row]))
        )
        if stopper.decide(begun, trainings, objectives).stop:
            trainings.append(begun)
            cost = cells.seconds[row] * RUNG / LAST
        else:
            curve = (*begun.curve, *(np.nan,) * (LAST - RUNG - 1), float(cells.final[row]))
            trainings.append(Training(begun.number, begun.known, curve, finished=True))
            finished.append(row)
            cost = cells.seconds[row]
        rows.append(row)
        ended.append(len(finished))
        spent.append(spent[-1] + float(cost))
        if len(rows) >= trials and spent[-1] >= budget_s:
            break
    whole = np.ones(2)
    in_budget = int(np.searchsorted(spent, budget_s, "right")) - 1
    all_hv = hypervolume(losses, whole)
    first = set(finished[: ended[trials - 1]])
    stopped = [row for row in rows[:trials] if row not in first]
    front = losses[list(first)]
    wrong = [row for row in stopped if nondominated(np.vstack([front, losses[row]]))[-1]]
    return Searched(
        at_trials=100 * hypervolume(front, whole) / all_hv,
        seconds=spent[trials],
        at_budget=100 * hypervolume(losses[finished[: ended[in_budget - 1]]], whole) / all_hv if in_budget else 0.0,
        trainings=in_budget,
        stopped=len(stopped),
        wrong=len(wrong),
    )


def interval(values: FloatVector, digits: int = 1) -> str:
    """Mean of (n,) independent values and half the width of its 95% interval."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():.{digits}f} ±{half:.{digits}f}"


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 0) -> str:
    """Median of some values and the range of 95% of them."""
    low, middle, high = np.quantile(np.array(values) * scale, (0.025, 0.5, 0.975))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(options: argparse.Namespace) -> None:
    """Simulated searches on the public table."""
    names = options.devices.split(",")
    devices = [read_cells(options.truth, options.latency, name) for name in names]
    pairs = [(cells, scaled_losses(cells)) for cells in devices]
    budget_s = options.trials * float(devices[0].seconds.mean())
    print(f"NAS-Bench-201, CIFAR-10 validation accuracy and latency on {', '.join(names)}; {options.seeds} seeds;")
    print(f"{options.trials} trainings, or {budget_s / 3600:.1f} hours, which is what they take to the end on average")
    for proposals in PROPOSALS:
        print(f"\n{proposals:20} | {f'after {options.trials} trainings':^60} | {'after equal seconds':^28}")
        print(
            f"{'rule':20} | {'seconds saved %':>16}{'hypervolume %':>16}{'regret':>14}{'wrong/stopped':>14} | "
            f"{'hypervolume %':>16}{'trainings':>12}"
        )
        whole: FloatMatrix | None = None
        for rule, (name, settings) in TABLE_RULES.items():
            stopper = make_stopper(name, settings, LAST)
            found = [
                [search(*one, proposals, stopper, seed, options.trials, budget_s) for one in pairs]
                for seed in range(options.seeds)
            ]
            columns = {
                key: np.array([[getattr(one, key) for one in row] for row in found], dtype=np.float64).mean(axis=1)
                for key in ("at_trials", "seconds", "at_budget", "trainings", "stopped", "wrong")
            }
            whole = np.array([columns["at_trials"], columns["seconds"]]) if whole is None else whole
            stops = f"{columns['wrong'].mean():.1f}/{columns['stopped'].mean():.1f}"
            print(
                f"{rule:20} | {interval(100 - 100 * columns['seconds'] / whole[1]):>16}"
                f"{interval(columns['at_trials']):>16}{interval(whole[0] - columns['at_trials']):>14}{stops:>14} | "
                f"{interval(columns['at_budget']):>16}{columns['trainings'].mean():12.0f}",
                flush=True,
            )


def curves(options: argparse.Namespace) -> None:
    """Replays on recorded curves."""
    if options.images is not None:
        for row in record_curves(options.curves, options.images, options.networks):
            print(f"trained {row.arch}: {row.curve[-1]:.2f}% in {row.seconds:.0f} s", flush=True)
    rows = read_curves(options.curves)
    if not rows:
        raise SystemExit(f"{options.curves} has no curves; record them with --images FOLDER")
    objectives = (Objective("accuracy", "%", "maximize"), Objective("multiply-adds", "M", "minimize"))
    losses = np.array([(-row.curve[-1], row.macs_m) for row in rows])
    reference = losses.max(axis=0)
    all_hv = hypervolume(losses, reference)
    finals = [row.curve[-1] for row in rows]
    print(
        f"{len(rows)} networks of {EPOCHS} epochs, {sum(row.seconds for row in rows):.0f} s of training: "
        f"{min(finals):.1f} to {max(finals):.1f}%, {int(nondominated(losses).sum())} on the front; "
        f"{options.orders} random orders, {options.workers} at a time"
    )
    print(f"{'rule':25}{'epochs saved %':>15}{'stopped':>15}{'wrong':>14}{'of stopped %':>14}{'lost %':>21}")
    orders = [np.random.default_rng(seed).permutation(len(rows)) for seed in range(options.orders)]
    rules = {rule: make_stopper(name, settings, EPOCHS) for rule, (name, settings) in CURVE_RULES.items()}
    naive = {"at random": AtRandom(max_epochs=EPOCHS), "latest value": LatestValue(max_epochs=EPOCHS)}
    for rule, stopper in {**naive, **rules}.items():
        saved, stopped, wrong, lost = list[float](), list[float](), list[float](), list[float]()
        for order in orders:
            shown = [
                Training(place, {"multiply-adds": rows[row].macs_m}, rows[row].curve, finished=True)
                for place, row in enumerate(order)
            ]
            found = replay(stopper, shown, objectives, options.workers)
            kept = [row for row, gone in zip(order, found.stopped, strict=True) if not gone]
            saved.append(found.saved)
            stopped.append(sum(found.stopped))
            wrong.append(sum(found.wrong))
            lost.append(1 - hypervolume(losses[kept], reference) / all_hv)
        share = 100 * sum(wrong) / max(1, sum(stopped))
        print(
            f"{rule:25}{spread(saved, 100):>15}{spread(stopped):>15}{spread(wrong):>14}{share:14.1f}"
            f"{spread(lost, 100, 1):>21}",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    of_table = kinds.add_parser("table", help="simulated searches on NAS-Bench-201")
    of_table.add_argument("--truth", type=Path, required=True)
    of_table.add_argument("--latency", type=Path, required=True)
    of_table.add_argument("--devices", default="gold_6240,pixel3,1080ti_1", help="columns (default %(default)s)")
    of_table.add_argument("--seeds", type=int, default=30)
    of_table.add_argument("--trials", type=int, default=100)
    of_table.set_defaults(run=table)
    of_curves = kinds.add_parser("curves", help="replays on learning curves of real trainings")
    of_curves.add_argument("--curves", type=Path, default=CURVES)
    of_curves.add_argument("--images", type=Path, help="train what the file of curves lacks, on images of this folder")
    of_curves.add_argument("--networks", type=int, default=40)
    of_curves.add_argument("--orders", type=int, default=30)
    of_curves.add_argument("--workers", type=int, default=1, help="trainings at a time")
    of_curves.set_defaults(run=curves)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    options.run(options)
    print(f"({time.monotonic() - started:.0f} s on {platform.machine()}, {platform.system()}, one thread)")


if __name__ == "__main__":
    main()
