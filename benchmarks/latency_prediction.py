"""How well unseen networks' latency is predicted: the table's predictor beside a fit on MACs, in one run.

    python benchmarks/latency_prediction.py RECIPE.toml --unseen 30

Profiles the recipe's target and space if there is no table yet, then measures random networks that the table has never
seen, in a session of its own and once more in another, and prints for every method the error against the first session.
The last row is the noise floor: the second session taken as the prediction of the first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from hwnas.latency.covering import random_archs
from hwnas.latency.graph import write_graph
from hwnas.latency.measure import measure_files
from hwnas.pipeline import profile_stage
from hwnas.recipe import load_recipe
from hwnas.run import Run
from hwnas.space import IntMatrix, format_arch, parse_arch
from hwprof.table import Model

FloatVector = NDArray[np.float64]


def measure(run: Run, archs: IntMatrix, folder: Path) -> FloatVector:
    """(n,) measured ms of the networks' graphs, NaN where the measurement was refused."""
    files = {}
    for number, row in enumerate(archs):
        name = format_arch(row)
        files[name] = folder / f"{number}.onnx"
        write_graph(run.space, parse_arch(name), run.target.batch, files[name])
    measured = measure_files(files, run.space, run.table, run.device)
    return np.array([np.nan if measured[name].refused else measured[name].ms for name in files])


def macs_fit(run: Run, models: list[Model], archs: IntMatrix) -> FloatVector:
    """(n,) ms from an affine fit of latency on MACs, on the same whole networks that calibrated the table."""
    macs = run.index.costs(np.array([block.macs for block in run.index.blocks], dtype=float))
    known = np.array([parse_arch(model.name) for model in models])
    slope, intercept = np.polyfit(run.index.total(known, macs), [model.ms for model in models], 1)
    return np.asarray(intercept + slope * run.index.total(run.space.canonical(archs), macs))


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--unseen", type=int, default=30, help="networks to predict and measure")
    parser.add_argument("--seed", type=int, default=1234, help="seed of the unseen networks")
    options = parser.parse_args()
    run = Run(load_recipe(options.recipe), options.recipe.read_text())
    begin = time.perf_counter()
    profiled = profile_stage(run)
    seconds = time.perf_counter() - begin
    seen = np.array([parse_arch(model.name) for model in run.table.models])
    archs = random_archs(run.space, options.unseen, np.random.default_rng(options.seed), exclude=seen)
    with tempfile.TemporaryDirectory() as folder:
        first, second = measure(run, archs, Path(folder)), measure(run, archs, Path(folder))
    calibration = [model for model in run.table.models if model.role == "fit"]
    rows = {
        "latency table": run.predictor.predict_ms(archs),
        "affine fit on MACs": macs_fit(run, calibration, archs),
        "noise floor (measured again)": second,
    }
    facts = run.table.provenance
    out = Console()
    out.print(f"machine: {', '.join(run.table.fingerprint.values())}")
    out.print(f"command: python benchmarks/latency_prediction.py {options.recipe} --unseen {options.unseen}")
    out.print(
        f"table: {profiled.path}: {facts['profiled_networks']} networks profiled, {facts['device_seconds']} s of "
        f"device time{'' if profiled.reused else f', {seconds:.0f} s in all'}"
    )
    table = Table(title=f"{len(archs)} unseen networks, {np.nanmin(first):.3g} to {np.nanmax(first):.3g} ms")
    for heading in ("method", "mean error", "within 5 %", "largest", "bias", "Spearman"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, predicted in rows.items():
        kept = np.isfinite(first) & np.isfinite(predicted)
        error = predicted[kept] / first[kept] - 1
        table.add_row(
            name,
            f"{np.abs(error).mean():.2%}",
            f"{(np.abs(error) <= 0.05).mean():.0%}",
            f"{np.abs(error).max():.1%}",
            f"{error.mean():+.2%}",
            f"{spearmanr(predicted[kept], first[kept]).statistic:.4f}",
        )
    out.print(table)
    many = run.space.sample(1_000_000, np.random.default_rng(0))
    begin = time.perf_counter()
    run.predictor.predict_ms(many)
    out.print(f"one million architectures predicted in {time.perf_counter() - begin:.2f} s on one core")


if __name__ == "__main__":
    main()
