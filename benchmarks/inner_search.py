"""The search over predictors beside Once-for-All's own evolution: candidates a second, and what each finds.

    python benchmarks/inner_search.py --luts op_latency_luts.csv.gz --accuracies ofa_mbv3_w1.0_imagenet_top1.csv.gz

`--luts` holds the published Note10 table (`note10_mbv3`), `--accuracies` measured subnets (columns ks, e, d, top1). On
the subnets a multilayer perceptron of Once-for-All's kind is fitted (three hidden layers of `--hidden` units on one-hot
options); they all are of resolution 224, and for the smaller ones the points that MobileNetV2 is published to lose are
taken off. It is the accuracy in all that follows, right or wrong: the benchmark is about search.

Speed: distinct architectures within the limit, evaluated by table and perceptron, a second of one core, whole searches
from first to last, in turn. "latency only" is the search's own share: the same with the perceptron's time taken off.
Front: the best accuracy at every limit, of the evolution (one run a limit), of one run of ours for all limits, and of
one run of ours a limit, all of the same number of evaluations; "best known" is the best of all and of a run of twenty
times as many evaluations. Hypervolume: the share of the best known front's that is missed, over two objectives and
over three.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # one core; read when NumPy is imported

import numpy as np
from sklearn.neural_network import MLPRegressor

from baselines.once_for_all import EVALUATIONS, POPULATION, evolve, plain_latency
from hwnas.latency.importers import import_table
from hwnas.latency.predict import TablePredictor
from hwnas.search.inner import Front, nsga2
from hwnas.search.pareto import hypervolume, nondominated
from hwnas.search.problem import FloatMatrix, FloatVector, Objective, to_losses
from hwnas.space import IntMatrix, SearchSpace
from hwnas.spaces import make_space
from hwprof.table import read_table
from hwprof.target import Target

TABLES = Path(__file__).resolve().parents[1] / "latency_tables"
LOST = {160: 3.0, 176: 2.05, 192: 1.1, 208: 0.55, 224: 0.0}  # MobileNetV2: 71.8 at 224, 70.7 at 192, 68.8 at 160
ACCURACY = Objective("accuracy", "%", "maximize")
MACS = Objective("macs", "M", "minimize")


def latency(limit: float | None = None) -> Objective:
    """The second objective."""
    return Objective("latency", "ms", "minimize", limit)


class Perceptron:
    """(n, slots) canonical architectures -> (n,) accuracy in %."""

    def __init__(self, space: SearchSpace, path: Path, hidden: int) -> None:
        self.starts = np.append(0, np.cumsum(space.cardinalities)[:-1])
        self.width = int(space.cardinalities.sum())
        self.lost = np.array([LOST[int(option)] for option in space.slots[0].options])
        archs, accuracies = read_accuracies(path)
        features, (self.mean, self.spread) = (
            self.features(space.canonical(archs)),
            (accuracies.mean(), accuracies.std()),
        )
        held_out = np.random.default_rng(0).permutation(len(archs)) < len(archs) // 8
        model = MLPRegressor(hidden_layer_sizes=(hidden,) * 3, alpha=1e-3, early_stopping=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features[~held_out], (accuracies[~held_out] - self.mean) / self.spread)
        self.layers = [
            (weights.astype(np.float32), bias.astype(np.float32))
            for weights, bias in zip(model.coefs_, model.intercepts_, strict=True)
        ]
        error = self(space.canonical(archs[held_out])) - accuracies[held_out]
        self.error = float(np.sqrt((error**2).mean()))

    def features(self, archs: IntMatrix) -> np.ndarray:
        """(n, options) float32: 1 where an option is chosen; nothing of the resolution."""
        ones = np.zeros((len(archs), self.width), dtype=np.float32)
        ones.reshape(-1)[archs + self.starts + self.width * np.arange(len(archs))[:, None]] = 1
        ones[:, : self.starts[1]] = 0
        return ones

    def __call__(self, archs: IntMatrix) -> FloatVector:
        values = self.features(archs)
        for weights, bias in self.layers[:-1]:
            values = values @ weights
            values += bias
            np.maximum(values, 0, out=values)
        weights, bias = self.layers[-1]
        scores: FloatVector = (values @ weights + bias)[:, 0].astype(np.float64)
        return scores * self.spread + self.mean - self.lost[archs[:, 0]]


def read_accuracies(path: Path) -> tuple[IntMatrix, FloatVector]:
    """Architectures of the default space at resolution 224, and their measured accuracies in %."""
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    archs = []
    for row in rows:
        arch = [len(LOST) - 1, 0]
        for stage in range(5):
            arch.append("234".index(row["d"][stage]))
            for layer in range(4 * stage, 4 * stage + 4):
                arch += ["357".index(row["ks"][layer]), "346".index(row["e"][layer])]
        archs.append(arch)
    return np.array(archs, dtype=np.int64), np.array([float(row["top1"]) for row in rows])


class Evaluator:
    """(n, slots) -> (n, 2 or 3) accuracy, latency and, if asked, MACs in millions; counts what keeps the limit."""

    def __init__(
        self, predictor: TablePredictor, accuracy: Perceptron, limit: float | None, macs: bool = False
    ) -> None:
        self.predictor, self.accuracy, self.limit = predictor, accuracy, np.inf if limit is None else limit
        index = predictor.index
        self.macs = index.costs(np.array([block.macs / 1e6 for block in index.blocks])) if macs else None
        self.within, self.accuracy_seconds = 0, 0.0

    def __call__(self, archs: IntMatrix) -> FloatMatrix:
        ms, begin = self.predictor.predict_ms(archs), time.process_time()
        columns = [self.accuracy(archs), ms]
        self.accuracy_seconds += time.process_time() - begin
        self.within += int((ms <= self.limit).sum())
        if self.macs is not None:
            columns.append(self.predictor.index.total(archs, self.macs))
        return np.column_stack(columns)


def ours(
    predictor: TablePredictor, accuracy: Perceptron, limit: float | None, seed: int, population: int, times: int = 1
) -> Front:
    """The front of one run of as many evaluations as the evolution has, `times` that."""
    evaluate = Evaluator(predictor, accuracy, limit)
    generations = times * EVALUATIONS // population
    objectives = [ACCURACY, latency(limit)]
    return nsga2(predictor.space, evaluate, objectives, population=population, generations=generations, seed=seed)


def speed(
    name: str, predictor: TablePredictor, accuracy: Perceptron, limit: float, options: argparse.Namespace
) -> None:
    """Both searches in turn; seconds of the process, which other processes of the machine do not count in."""
    plain = plain_latency(predictor)
    for limit_ms in (limit, None):
        rates, own, wall, theirs = [], [], [], []
        for seed in range(options.seeds):
            evaluate = Evaluator(predictor, accuracy, limit_ms)
            begin, begin_wall = time.process_time(), time.perf_counter()
            nsga2(
                predictor.space,
                evaluate,
                [ACCURACY, latency(limit_ms)],
                population=options.population,
                generations=EVALUATIONS // options.population,
                seed=seed,
            )
            spent = time.process_time() - begin
            wall.append(evaluate.within / (time.perf_counter() - begin_wall))
            rates.append(evaluate.within / spent)
            own.append(evaluate.within / (spent - evaluate.accuracy_seconds))
            if limit_ms is not None:
                begin = time.process_time()
                found = evolve(predictor.space, plain, accuracy, limit_ms, seed, generations=50)
                theirs.append(found.distinct / (time.process_time() - begin))
        bound = "no limit" if limit_ms is None else f"<= {limit_ms:.4g} ms"
        print(
            f"| {name} | {bound} | {np.median(rates):,.0f} | {np.median(wall):,.0f} | {np.median(own):,.0f} | "
            + (f"{np.median(theirs):,.0f} |" if theirs else "- |"),
            flush=True,
        )


def best_within(values: FloatMatrix, limit: float) -> float:
    """The best accuracy of (n, 2) values at a limit."""
    return float(values[values[:, 1] <= limit, 0].max(initial=-np.inf))


def fronts(predictor: TablePredictor, accuracy: Perceptron, options: argparse.Namespace) -> None:
    """What is found at every limit."""
    seeds, population = range(options.seeds), options.population
    plain = plain_latency(predictor)
    whole = [ours(predictor, accuracy, None, seed, population).values for seed in seeds]
    long = ours(predictor, accuracy, None, len(seeds), 1000, times=20).values
    print("\n| limit, ms | Once-for-All: mean (best) | ours, one run: mean (worst) | ours, a run each | best known |")
    print("|---|---|---|---|---|")
    wins = total = 0
    for limit in options.limits:
        theirs = [evolve(predictor.space, plain, accuracy, limit, seed).accuracy for seed in seeds]
        one = [best_within(values, limit) for values in whole]
        each = [float(ours(predictor, accuracy, limit, seed, population).values[:, 0].max()) for seed in seeds]
        wins, total = wins + sum(a >= b for a in one for b in theirs), total + len(one) * len(theirs)
        known = max(*theirs, *one, *each, best_within(long, limit))
        print(
            f"| {limit:g} | {np.mean(theirs):.3f} ({max(theirs):.3f}) | {np.mean(one):.3f} ({min(one):.3f}) | "
            f"{np.mean(each):.3f} ({min(each):.3f}) | {known:.3f} |",
            flush=True,
        )
    print(f"\nOne run of ours for all limits is at least as good as one of theirs in {wins} of {total} pairs of seeds.")


def missed(
    predictor: TablePredictor, accuracy: Perceptron, objectives: Sequence[Objective], options: argparse.Namespace
) -> None:
    """The share of the best known hypervolume that runs of several budgets miss."""
    macs = len(objectives) == 3

    def run(population: int, generations: int, seed: int) -> FloatMatrix:
        evaluate = Evaluator(predictor, accuracy, None, macs)
        found = nsga2(predictor.space, evaluate, objectives, population=population, generations=generations, seed=seed)
        return to_losses(found.values, objectives)

    budgets = [(100, 20), (100, 60), (100, 500)]
    found = {budget: [run(*budget, seed) for seed in range(options.seeds)] for budget in budgets}
    known = np.concatenate([run(1000, 1000, options.seeds), *(front for runs in found.values() for front in runs)])
    known = known[nondominated(known)]
    reference = known.max(axis=0) + 0.1 * np.ptp(known, axis=0)
    most = hypervolume(known, reference)
    for (population, generations), runs in found.items():
        shares = [1 - hypervolume(front, reference) / most for front in runs]
        print(
            f"| {len(objectives)} | {population * generations:,} | {100 * np.mean(shares):.2f} % "
            f"({100 * max(shares):.2f} %) |",
            flush=True,
        )


def default_space() -> TablePredictor:
    """A shipped table of the default space."""
    for path in sorted(TABLES.glob("*/*-mobilenetv3-*.json")):
        table = read_table(path)
        space = make_space("mobilenetv3", {})
        if dict(space.config).items() <= dict(table.provenance["space"]).items():
            return TablePredictor(space, table)
    raise SystemExit(f"no table in {TABLES} is of the default mobilenetv3 space")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, search, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--luts", type=Path, required=True)
    parser.add_argument("--accuracies", type=Path, required=True)
    parser.add_argument("--limits", type=float, nargs="+", default=[15, 18, 20, 22, 25, 28, 30, 35, 40, 50])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--population", type=int, default=POPULATION)
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "benchmarks/inner_search.py", *(sys.argv[1:] if arguments is None else arguments)])
    table = import_table(options.luts, target=Target(device="note10"), table="note10_mbv3").table
    # the widths that the Note10 table is for; the options of the slots, and so the architectures, are the default's
    note10 = TablePredictor(make_space("mobilenetv3", {"width_mults": [1.2]}), table)
    accuracy = Perceptron(note10.space, options.accuracies, options.hidden)
    print(f"{command}\n{platform.processor() or platform.machine()}, NumPy {np.__version__}, one core")
    print(f"perceptron: error {accuracy.error:.3f} points on held-out subnets\n")
    print("| space and table | limit | ours, a CPU second | ours, a second of wall | latency only | Once-for-All's |")
    print("|---|---|---|---|---|---|")
    default = default_space()
    middle = float(np.quantile(default.predict_ms(default.space.sample(10_000, np.random.default_rng(0))), 0.1))
    speed("mobilenetv3, shipped", default, accuracy, middle, options)
    speed("mobilenetv3 w1.2, Note10", note10, accuracy, 25.0, options)
    fronts(note10, accuracy, options)
    print("\n| objectives | evaluations | hypervolume missed: mean (worst) |\n|---|---|---|")
    missed(note10, accuracy, [ACCURACY, latency()], options)
    missed(note10, accuracy, [ACCURACY, latency(), MACS], options)


if __name__ == "__main__":
    main()
