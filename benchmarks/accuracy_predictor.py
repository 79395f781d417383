"""How well a predictor of accuracy does on networks that it has not seen, beside a ridge and Once-for-All's MLP.

    python benchmarks/accuracy_predictor.py --ofa ofa_mbv3_w1.0_imagenet_top1.csv.gz --nb201 nb201_cifar10.csv.gz

`--ofa`: a row per measured subnet of Once-for-All's MobileNetV3, with `ks` and `e` (20 digits), `d` (5 digits), `r` and
`top1`; `--nb201`: `ops` (six digits) and the accuracy in `--nb201-accuracy`; cells with operations that cannot matter
are left out. Rows are drawn at random for the fit; judged is every other row whose network was not drawn (some networks
were measured several times). All numbers are means over the draws.

covered: the share of accuracies within the 90 % interval, width: its median width. The MLP has three layers of 400
units on one-hot options (Cai et al., ICLR 2020, section 4), fitted by Adam; the ridge has its penalty from
leave-one-out errors. The predictor was developed on draws of seeds from 100 on, here they begin at 0.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import platform
import shlex
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau, spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from hwnas.search.accuracy import AccuracyPredictor
from hwnas.search.surrogate import ScoreModel
from hwnas.space import IntMatrix, SearchSpace
from hwnas.spaces import make_space

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Record = dict[str, float]
_SPEED = 100_000


def read_ofa(path: Path) -> tuple[SearchSpace, IntMatrix, Vector]:
    """The space, (n, slots) canonical subnets, (n,) top-1 in percent."""
    rows = _rows(path)
    space = make_space("mobilenetv3", {"resolutions": sorted({int(row["r"]) for row in rows})})
    archs = np.array([space.arch_of(_ofa_choice(row)) for row in rows], dtype=np.int64)
    return space, archs, np.array([float(row["top1"]) for row in rows])


def _ofa_choice(row: dict[str, str]) -> dict[str, int | float | str]:
    choice: dict[str, int | float | str] = {"resolution": int(row["r"]), "width": 1.0}
    for stage, depth in enumerate(row["d"]):
        choice[f"stage{stage}.depth"] = int(depth)
        for layer in range(4):
            choice[f"stage{stage}.{layer}.kernel"] = int(row["ks"][4 * stage + layer])
            choice[f"stage{stage}.{layer}.expand"] = int(row["e"][4 * stage + layer])
    return choice


def read_nb201(path: Path, accuracy: str) -> tuple[SearchSpace, IntMatrix, Vector]:
    """The space, (n, 6) canonical cells, (n,) accuracies in percent."""
    rows, space = _rows(path), make_space("nasbench201", {})
    archs = np.array([[int(op) for op in row["ops"]] for row in rows], dtype=np.int64)
    kept = (space.canonical(archs) == archs).all(axis=1)
    return space, archs[kept], np.array([float(row[accuracy]) for row in rows])[kept]


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return list(csv.DictReader(file))


def judge(predicted: Vector, actual: Vector) -> Record:
    """Root mean square error in percent points, rank correlations."""
    return {
        "rmse": float(np.sqrt(((predicted - actual) ** 2).mean())),
        "tau": float(kendalltau(predicted, actual).statistic),
        "rho": float(spearmanr(predicted, actual).statistic),
    }


def ours(space: SearchSpace, archs: IntMatrix, accuracy: Vector, asked: IntMatrix, actual: Vector) -> Record:
    started = time.perf_counter()
    model = AccuracyPredictor.fit(space, archs, accuracy)
    seconds = time.perf_counter() - started
    low, high = model.interval(asked)
    many = np.resize(asked, (_SPEED, asked.shape[1]))
    started = time.perf_counter()
    model.predict(many)
    return {
        **judge(model.predict(asked), actual),
        "fit": seconds,
        "speed": _SPEED / (time.perf_counter() - started),
        "covered": float(((low <= actual) & (actual <= high)).mean()),
        "width": float(np.median(high - low)),
        "held-out rmse": model.held_out.rmse,
        "held-out tau": model.held_out.kendall,
        f"chose {model.chosen}": 1.0,
    }


def ridge(space: SearchSpace, archs: IntMatrix, accuracy: Vector, asked: IntMatrix, actual: Vector) -> Record:
    return judge(ScoreModel.fit(space, archs, accuracy).predict(asked), actual)


def mlp(space: SearchSpace, archs: IntMatrix, accuracy: Vector, asked: IntMatrix, actual: Vector) -> Record:
    def one_hot(archs: IntMatrix) -> Matrix:
        return np.concatenate(
            [archs[:, [slot]] == np.arange(count) for slot, count in enumerate(space.cardinalities) if count > 1],
            axis=1,
        ).astype(np.float64)

    level, scale = accuracy.mean(), accuracy.std()
    network = MLPRegressor(hidden_layer_sizes=(400, 400, 400), max_iter=200, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(one_hot(archs), (accuracy - level) / scale)
    return judge(level + scale * network.predict(one_hot(asked)), actual)


METHODS: dict[str, Callable[[SearchSpace, IntMatrix, Vector, IntMatrix, Vector], Record]] = {
    "hwnas": ours,
    "ridge": ridge,
    "MLP 3 x 400": mlp,
}


def draw(archs: IntMatrix, rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the fit, and all rows of other networks."""
    order = np.random.default_rng(seed).permutation(len(archs))
    number = np.unique(archs, axis=0, return_inverse=True)[1].reshape(-1)
    return order[:rows], np.flatnonzero(~np.isin(number, number[order[:rows]]))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ofa", type=Path)
    parser.add_argument("--nb201", type=Path)
    parser.add_argument("--nb201-accuracy", default="c10_valid_200")
    parser.add_argument("--rows", default="100,200,500,1000", help="numbers of rows to fit")
    parser.add_argument("--seeds", type=int, default=5, help="random draws of these rows")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args(arguments)
    sets = {}
    if given.ofa:
        sets["OFA ImageNet"] = read_ofa(given.ofa)
    if given.nb201:
        sets["NB201 CIFAR-10"] = read_nb201(given.nb201, given.nb201_accuracy)
    if not sets:
        parser.error("give --ofa, --nb201 or both")
    columns = ("rmse", "tau", "rho", "covered", "width", "held-out rmse", "held-out tau", "fit", "speed")
    table = Table("data", "rows", "method", *columns, "chosen")
    for data, (space, archs, accuracy) in sets.items():
        for rows in (int(text) for text in given.rows.split(",")):
            for method in given.methods:
                found: dict[str, list[float]] = defaultdict(list)
                chosen: Counter[str] = Counter()
                for seed in range(given.seeds):
                    fit, other = draw(archs, rows, seed)
                    record = METHODS[method](space, archs[fit], accuracy[fit], archs[other], accuracy[other])
                    for name, value in record.items():
                        if name.startswith("chose "):
                            chosen[name.removeprefix("chose ")] += 1
                        else:
                            found[name].append(value)
                texts = [f"{np.mean(found[name]):.4g}" if found[name] else "" for name in columns]
                table.add_row(data, str(rows), method, *texts, ", ".join(f"{n} x {k}" for k, n in chosen.items()))
    console = Console(width=180)
    console.print(table)
    console.print(
        f"means over {given.seeds} draws; rmse and width in percent points, fit in seconds, speed in predictions a "
        f"second\n{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy "
        f"{np.__version__}; python benchmarks/accuracy_predictor.py {shlex.join(arguments)}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
