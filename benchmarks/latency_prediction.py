"""How well the latency of unseen networks is predicted: the table beside other methods, in one run.

    python benchmarks/latency_prediction.py RECIPE.toml --unseen 60

Profiles the recipe's target and space if there is no table yet. Then random networks that the table has never seen are
measured in a session of their own, each baseline measures what it needs, and the unseen networks are measured again.
Every method is compared with the first of these sessions on the same networks; the noise floor is the second session
taken as the prediction of the first. Device seconds are all that a method needed on the device, the table's with its
own validation; where a baseline is fitted on the networks that calibrated the table, their time is that of as many in
the first session.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from baselines.comparison import BASELINES, CONFIDENCE, Comparison, Method, compare
from baselines.session import Context
from hwnas.errors import HwnasError
from hwnas.latency.covering import random_archs
from hwnas.pipeline import ProfileResult, profile_stage
from hwnas.recipe import load_recipe
from hwnas.run import Run
from hwnas.space import format_arch, parse_arch
from hwprof.errors import HwprofError
from hwprof.table import LatencyTable, read_table

MANY = 1_000_000


def table_networks(table: LatencyTable) -> int:
    """How many whole networks were measured for the table, second sessions and profiles included."""
    whole = [model for model in table.models if model.role != "anchor"]
    return (
        int(table.provenance.get("profiled_networks", 0))
        + len(whole)
        + sum(model.again_ms is not None for model in whole)
    )


def speed(run: Run, path: Path, repeats: int = 7) -> dict[str, float]:
    """Seconds to predict MANY architectures, and median ms to read the table and to make the predictor of it."""
    archs = run.space.sample(MANY, np.random.default_rng(0))
    seconds = _seconds(lambda: run.predictor.predict_ms(archs))

    def construct() -> None:
        fresh = Run(run.recipe, run.recipe_text)
        fresh.space, fresh.table, fresh.table_path = run.space, run.table, path
        _ = fresh.predictor

    reading, making = (
        1e3 * statistics.median(_seconds(work) for _ in range(repeats))
        for work in (lambda: read_table(path), construct)
    )
    return {"million_seconds": seconds, "read_table_ms": reading, "predictor_ms": making}


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def as_json(comparison: Comparison, head: dict[str, Any]) -> dict[str, Any]:
    """All numbers: the methods', the sessions' and, for each network, what was measured and predicted."""
    names = [format_arch(arch) for arch in comparison.archs]
    return {
        **head,
        "sessions": [asdict(session) for session in comparison.sessions],
        "methods": [
            {
                "name": method.name,
                "device_seconds": round(method.device_seconds, 2),
                "failed": method.failed,
                "coverage": method.coverage,
                "times_ours": comparison.times_ours(method),
                **({} if method.found is None else asdict(method.found)),
            }
            for method in comparison.methods
        ],
        "networks": [
            {
                "arch": name,
                "first_ms": float(comparison.first_ms[row]),
                "second_ms": float(comparison.second_ms[row]),
                "predicted_ms": {
                    method.name: float(method.predicted_ms[row]) for method in comparison.methods[:-1] if method.found
                },
            }
            for row, name in enumerate(names)
        ],
    }


def show(comparison: Comparison, out: Console) -> None:
    """Print the comparison: a line for each session, the table, and why methods are missing in it."""
    for session in comparison.sessions:
        refused = f", {len(session.refused)} refused" if session.refused else ""
        out.print(
            f"session {session.begin}: {len(session.ms)} {session.what}{refused}, {session.device_seconds:.1f} s of "
            f"device time, load {session.state.get('load_1min', 'unknown')}"
        )
    first = comparison.first_ms
    table = Table(title=f"{len(first)} unseen networks, {first.min():.3g} to {first.max():.3g} ms")
    headings = ("mean error", "x ours", "within 5 %", "within 10 %", "largest", "bias", "Spearman")
    table.add_column("method", no_wrap=True)
    for heading in (*headings, f"in {CONFIDENCE:.0%}", "device s"):
        table.add_column(heading, justify="right")
    for method in comparison.methods:
        table.add_row(method.name, *_cells(method, comparison))
    out.print(table)
    for method in comparison.methods:
        if method.failed is not None:
            out.print(f"{method.name}: no result: {method.failed}", soft_wrap=True)


def _cells(method: Method, comparison: Comparison) -> list[str]:
    found, ratio = method.found, comparison.times_ours(method)
    if found is None:
        return ["-"] * 9
    return [
        f"{found.mean_error:.2%}",
        "-" if ratio is None else f"{ratio:.2f}",
        f"{found.within_5_percent:.0%}",
        f"{found.within_10_percent:.0%}",
        f"{found.max_error:.1%}",
        f"{found.bias:+.2%}",
        "-" if found.spearman is None else f"{found.spearman:.4f}",
        "" if method.coverage is None else f"{method.coverage:.0%}",
        f"{method.device_seconds:.1f}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--unseen", type=_count, default=60, help="networks to predict and measure")
    parser.add_argument("--seed", type=int, default=1234, help="seed of the unseen networks and of all that is drawn")
    parser.add_argument("--baselines", type=_baselines, default="all", help=f"all, none, or of {','.join(BASELINES)}")
    parser.add_argument(
        "--train-networks", type=_count, help="networks measured for the boosting (default: as many as for the table)"
    )
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    options = parser.parse_args(arguments)
    out = Console(width=max(150, Console().width))
    try:
        run = Run(load_recipe(options.recipe), options.recipe.read_text(encoding="utf-8"), progress=_progress)
        profiled = profile_stage(run)
        seen = np.array([parse_arch(model.name) for model in run.table.models])
        archs = random_archs(run.space, options.unseen, np.random.default_rng(options.seed), exclude=seen)
        context = Context(options.seed, archs, options.train_networks or table_networks(run.table))
        head = _head(run, profiled, arguments)
        comparison = compare(run, archs, context, options.baselines)
    except (HwnasError, HwprofError) as error:
        parser.exit(1, f"error: {error}\n")
    head["speed"] = speed(run, profiled.path)
    for name in ("machine", "command", "table"):
        out.print(f"{name}: {head[name]}", soft_wrap=True, highlight=False)
    show(comparison, out)
    out.print(
        "{million_seconds:.2f} s to predict a million architectures on one core, {read_table_ms:.1f} ms to read the "
        "table, {predictor_ms:.1f} ms to make its predictor".format(**head["speed"])
    )
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(comparison, head), indent=1, allow_nan=False) + "\n")


def _head(run: Run, profiled: ProfileResult, arguments: Sequence[str] | None) -> dict[str, Any]:
    facts = profiled.table.provenance
    given = sys.argv[1:] if arguments is None else arguments
    return {
        "machine": ", ".join(profiled.table.fingerprint.values()),
        "command": shlex.join(["python", "benchmarks/latency_prediction.py", *given]),
        "table": f"{profiled.path}, made {facts.get('created', 'at an unknown time')}"
        f"{'' if profiled.reused else ' in this run'}, {facts.get('device_seconds', '?')} s of device time, "
        f"{facts.get('profiled_networks', '?')} networks profiled",
        "table_provenance": facts,
        "networks_for_the_table": table_networks(run.table),
    }


def _count(text: str) -> int:
    if int(text) < 3:
        raise argparse.ArgumentTypeError(f"at least 3 networks are needed, got {text}")
    return int(text)


def _baselines(text: str) -> list[str]:
    names = {"all": list(BASELINES), "none": []}.get(text, text.split(","))
    for name in names:
        if name not in BASELINES:
            raise argparse.ArgumentTypeError(f"no baseline is called {name!r}; there are {', '.join(BASELINES)}")
    return names


def _progress(stage: str, done: int, total: int, /) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{stage}: {done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
