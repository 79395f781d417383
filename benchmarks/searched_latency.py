"""How well a table predicts the networks that searches choose by it, and how often its intervals hold them.

    python benchmarks/searched_latency.py RECIPE.toml --profile "fit=180 searched=0" --profile "fit=72 searched=108"

For each `--profile` (settings of the recipe's [profile]) `--tables` tables are measured anew, with seeds of their own,
one of each in turn. Then `--searches` zero-shot searches of the recipe go by each table, and the networks of their
fronts are measured in a later session, beside as many random ones. `bias` is the mean of measured / predicted - 1:
above 0 where a search found networks that are predicted too fast; `inside` the share within their intervals of 90%.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hwnas.graphs import write_arch
from hwnas.latency.covering import random_archs
from hwnas.latency.measure import measure_files
from hwnas.pipeline import profile_stage, score_stage
from hwnas.recipe import Recipe, load_recipe
from hwnas.run import Run
from hwnas.space import Arch, format_arch, parse_arch, rows_of

FloatMatrix = NDArray[np.float64]


def with_settings(recipe: Recipe, folder: Path, settings: str) -> Recipe:
    """The recipe with tables in the folder and "name=number name=number" in its [profile]."""
    values = {name: int(value) for name, value in (each.split("=") for each in settings.split())}
    profile = type(recipe.profile).model_validate({**recipe.profile.model_dump(), **values, "tables": str(folder)})
    return recipe.model_copy(update={"profile": profile})


def searched(recipe: Recipe, text: str, seeds: Sequence[int], folder: Path) -> list[Arch]:
    """The networks on the fronts of zero-shot searches by the recipe's table."""
    found: list[Arch] = []
    for seed in seeds:
        run = Run(recipe.model_copy(update={"seed": seed, "name": f"seed-{seed}"}), text)
        run.folder = folder / f"seed-{seed}"
        found += [one.arch for one in score_stage(run)]
    return list(dict.fromkeys(found))


def judged(run: Run, archs: Sequence[Arch]) -> FloatMatrix:
    """(n, 3): measured / predicted - 1, whether within the interval, and half its width, of those not refused."""
    with tempfile.TemporaryDirectory() as folder:
        files = {
            format_arch(arch): write_arch(run.space, arch, run.target, Path(folder) / str(number))
            for number, arch in enumerate(archs)
        }
        measured = measure_files(files, run.space, run.table, run.device, plan=run.plan)
    kept = [one for one in measured.values() if not one.refused]
    matrix = np.array([parse_arch(one.name) for one in kept], dtype=np.int64)
    ms, predicted = np.array([one.ms for one in kept]), run.predictor.predict_ms(matrix)
    low, high = run.predictor.interval_ms(matrix)
    return np.stack([ms / predicted - 1, (low <= ms) & (ms <= high), high / predicted - 1], axis=1)


def columns(found: Sequence[FloatMatrix]) -> list[str]:
    """Networks, mean error, largest, bias (least to most of the tables), share inside, half the width of intervals."""
    error, inside, width = np.concatenate(found).T
    bias = [part[:, 0].mean() for part in found]
    return [
        str(len(error)),
        f"{np.abs(error).mean():.1%}",
        f"{np.abs(error).max():.1%}",
        f"{error.mean():+.1%} ({min(bias):+.1%} to {max(bias):+.1%})",
        f"{inside.mean():.0%}",
        f"{width.mean():.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--profile", action="append", required=True, metavar="SETTINGS")
    parser.add_argument("--tables", type=int, default=3)
    parser.add_argument("--searches", type=int, default=3)
    options = parser.parse_args()
    recipe, text = load_recipe(options.recipe), options.recipe.read_text(encoding="utf-8")
    seconds: dict[str, list[float]] = {settings: [] for settings in options.profile}
    found: dict[tuple[str, str], list[FloatMatrix]] = {}
    for seed in range(options.tables):
        with tempfile.TemporaryDirectory(prefix="hwnas-searched-") as name:
            chosen: list[tuple[str, Run, list[Arch]]] = []
            for number, settings in enumerate(options.profile):
                folder = Path(name) / str(number)
                run = Run(with_settings(recipe, folder, settings).model_copy(update={"seed": seed}), text)
                begin = time.perf_counter()
                profile_stage(run)
                seconds[settings].append(time.perf_counter() - begin)
                chosen.append((settings, run, searched(run.recipe, text, range(100, 100 + options.searches), folder)))
            for settings, run, archs in chosen:
                known = np.array([*archs, *(parse_arch(model.name) for model in run.table.models)], dtype=np.int64)
                others = rows_of(random_archs(run.space, len(archs), np.random.default_rng(1), exclude=known))
                for kind, networks in (("searched", archs), ("random", others)):
                    found.setdefault((settings, kind), []).append(judged(run, networks))
    table = Table("profile", "s", "networks", "n", "mean error", "largest", "bias", "inside", "interval +-")
    for (settings, kind), parts in found.items():
        table.add_row(settings, f"{np.median(seconds[settings]):.0f}", kind, *columns(parts))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
