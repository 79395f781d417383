"""How long zero-shot scores take for one network: each alone, all in one call, and networks in several processes.

    python benchmarks/zero_shot_seconds.py --threads 2

Scores take turns, medians over `--rounds`. Beside them what the published code of the same score took on a machine of
two CPU threads (batch 16; a cell of NAS-Bench-201 at 32 pixels, ResNet-18 at 224): other machines need a comparison of
their own, so take the ratios as orders of magnitude. Results: `benchmarks/data/README.md`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn
from torchvision import models

from hwnas.scoring import Scorers, Scoring, cores
from hwnas.space import rows_of
from hwnas.spaces import make_space
from hwnas.zeroshot import COMBINED, SCORES, compute_scores

CELL = (3, 3, 3, 1, 3, 3)  # of NAS-Bench-201: 3x3 convolutions and one skip connection
BATCH = 16
# The published code's seconds by score, where they were measured.
PUBLISHED = {
    "nasbench201": {
        **{"naswot": 0.39, "zen": 0.19, "synflow": 0.36, "snip": 0.42, "jacob_cov": 0.42, "zico": 0.48, "fisher": 0.57},
        **{"grasp": 1.04, "ntk": 1.9, "swap": 2.1, "expressivity": 0.25},
    },
    "resnet18": {"zen": 1.2, "naswot": 1.9, "ntk": 20.0},
}


def network(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The network with a batch of noise and labels."""
    torch.manual_seed(0)
    size, classes = (32, 10) if name == "nasbench201" else (224, 1000)
    module = make_space(name, {}).build(CELL) if name == "nasbench201" else models.resnet18(weights=None)
    return module, torch.randn(BATCH, 3, size, size), torch.randint(classes, (BATCH,))


def seconds(name: str, scores: Sequence[str], rounds: int) -> dict[str, float]:
    """Median seconds of each score alone, and of the default's and of all in one call."""
    module, images, labels = network(name)
    calls = {each: (each,) for each in scores} | {"combined": COMBINED, "all of these": tuple(scores)}
    spent: dict[str, list[float]] = {each: [] for each in calls}
    for number in range(rounds + 1):  # the first is not counted
        for each, names in calls.items():
            started = time.perf_counter()
            compute_scores(names, module, images, labels)
            if number:
                spent[each].append(time.perf_counter() - started)
    return {each: statistics.median(found) for each, found in spent.items()}


def throughput(workers: int, count: int) -> float:
    """Networks a second in so many processes, by the default's scores."""
    space = make_space("nasbench201", {})
    scoring = Scoring(
        names=COMBINED,
        space_name=space.name,
        space_config=dict(space.config),
        images=torch.randint(256, (BATCH, 3, 32, 32), dtype=torch.uint8),
        labels=torch.arange(BATCH) % 10,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        resolution=32,
        seed=0,
    )
    archs = rows_of(space.canonical(torch.randint(1, 5, (count + 2 * workers, 6)).numpy()))
    with Scorers(scoring, workers) as scorers:
        list(scorers.score(archs[: 2 * workers]))  # processes begin, torch warms up
        started = time.perf_counter()
        list(scorers.score(archs[2 * workers :]))
        return count / (time.perf_counter() - started)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", type=int, default=40, help="for the processes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, {cores()} cores, {options.threads} threads, batch {BATCH}")
    for name, scores in (("nasbench201", tuple(SCORES)), ("resnet18", tuple(SCORES))):
        published = PUBLISHED[name]
        print(f"\n{name:18}{'s':>9}{'published s':>13}{'ratio':>8}")
        rounds = options.rounds if name == "nasbench201" else max(1, options.rounds // 2)
        found = seconds(name, scores, rounds)
        for each, one in found.items():
            other = f"{published[each]:13.2f}{published[each] / one:8.1f}" if each in published else ""
            print(f"{each:18}{one:9.3f}{other}", flush=True)
        print(f"{'sum of them alone':18}{sum(found[each] for each in scores):9.3f}")
    one, all_ = throughput(1, options.networks), throughput(cores(), options.networks)
    print(f"\n{one:.2f} networks a second in one process, {all_:.2f} in {cores()}: {all_ / one:.2f} times")


if __name__ == "__main__":
    main()
