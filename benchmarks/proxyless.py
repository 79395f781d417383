"""Binarised paths beside the authors' way and beside DARTS's mixture: memory, time, and whether hard targets are kept.

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python benchmarks/proxyless.py                              # memory, times, and targets under the shipped tables
    python benchmarks/proxyless.py --images images              # and a search on part of Fashion-MNIST (torchvision's)
    python benchmarks/proxyless.py --images cifar10.npz         # or on part of other images

The network is like the authors' for ImageNet: `mobilenetv3` with ReLU6 and without squeeze-excite, stem 32 (stride 2),
five stages of 24 to 192 channels with up to four layers (theirs has one layer of 320 more), kernels 3, 5, 7 and
expansions 3, 6, layers after the first can be skipped; 32 pixels, batch 32, one thread. "Authors' way" is
`baselines/gated_paths.py`, in the same process. Memory is what autograd keeps for the backward pass, counted by its
own hooks (each storage once; the mean of twelve draws), and how far a fresh process's peak grows over twelve steps.
Times are medians over `--rounds`, in turns.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from baselines.gated_paths import GatedPaths
from hwnas.latency.predict import TablePredictor
from hwnas.space import IntMatrix, SearchSpace, rows_of
from hwnas.spaces import make_space
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.supernet.alphas import Alphas
from hwnas.supernet.centre import CentreConv2d
from hwnas.supernet.derive import derive
from hwnas.supernet.latency_loss import PredictMs, edge_costs
from hwnas.supernet.proxyless import ProxylessConfig, search
from hwnas.supernet.relaxations import relax
from hwnas.supernet.relaxed import RelaxedNetwork, inherited_network
from hwnas.supernet.steps import Goal, weight_step, weights_optimizer
from hwnas.supernet.strategy import make_strategy
from hwnas.train.data import ImageData, load_data
from hwnas.train.evaluate import evaluate
from hwnas.train.loop import TrainConfig, train
from hwprof.table import read_table

Step = Callable[[], object]
TABLES = Path(__file__).resolve().parents[1] / "latency_tables"
# what ours is compared with, of the same kind
BESIDE = {
    "weights: one path": "authors' way: weights",
    "architecture: two paths": "authors' way: architecture",
    "bookkeeping": "authors' way: bookkeeping",
}


def by_macs(space: SearchSpace) -> PredictMs:
    """A made-up table: 1 ms for a million multiply-accumulates."""

    def predict_ms(archs: IntMatrix) -> np.ndarray:
        return np.array([sum(block.macs for block in space.blocks(arch)) for arch in rows_of(archs)]) / 1e6

    return predict_ms


def authors_space() -> MobileNetV3Space:
    """The network of the module's text."""
    return MobileNetV3Space(
        resolutions=(32,), depths=(1, 2, 3, 4), kernels=(3, 5, 7), expands=(3, 6), stem_width=32, stem_stride=2,
        stage_widths=(24, 40, 80, 96, 192), stage_strides=(2, 2, 2, 1, 2), se=(False,) * 5, activations=("relu6",) * 5,
        head_widths=(1280, 1280), num_classes=10,
    )  # fmt: skip


def steps(kind: str | None = None) -> dict[str, Step]:
    """The steps by name; what they need is made once, so a single `kind` needs no memory for the others."""
    relaxation, generator, rng = relax(authors_space()), torch.Generator().manual_seed(0), np.random.default_rng(0)
    options = [len(edge.options) for edge in relaxation.edges]
    plain = torch.randn(32, 3, 32, 32, generator=generator)
    x, y = plain.contiguous(memory_format=torch.channels_last), torch.randint(0, 10, (32,), generator=generator)
    alphas, predict_ms = Alphas(options, 1e-3), by_macs(relaxation.space)
    costs = edge_costs(relaxation, predict_ms, alphas, rng, samples=1)
    goal = Goal(relaxation, predict_ms, costs.base_ms, "add", 0.1)
    network = RelaxedNetwork(relaxation, seed=0)
    found: dict[str, Step] = {}
    if kind is None or not kind.startswith("authors"):
        if kind == "single network":
            drawn = alphas.sample(rng).tolist()
            network = inherited_network(relaxation, network, drawn)
        network.to(memory_format=torch.channels_last)
        optimizer = weights_optimizer(network, 4e-5, torch.device("cpu"))
        for name, strategy in (("one path", make_strategy("binary")), ("all paths (DARTS)", make_strategy("mixture"))):
            found[f"weights: {name}"] = lambda strategy=strategy: weight_step(
                network, optimizer, strategy.weight_mixer(alphas, rng), x, y
            )
            name = name.replace("one path", "two paths")
            found[f"architecture: {name}"] = lambda strategy=strategy: goal.step(
                network, strategy, alphas, costs, x, y, rng
            )
        found["bookkeeping"] = lambda: _bookkeeping(alphas, rng)
        if kind == "single network":
            found[kind] = lambda: _train(network, optimizer, x, y)
    if kind is None or kind.startswith("authors"):
        whole = RelaxedNetwork(relaxation, seed=0)
        for module in whole.modules():
            if type(module) is CentreConv2d:  # which theirs does not have
                module.__class__ = torch.nn.Conv2d
        theirs = GatedPaths(whole, options, costs.costs_ms, costs.base_ms)
        found["authors' way: weights"] = lambda: theirs.weight_step(plain, y)
        found["authors' way: architecture"] = lambda: theirs.architecture_step(plain, y)
        found["authors' way: bookkeeping"] = lambda: theirs.update(theirs.sample_two())
    return found if kind is None else {kind: found[kind]}


def _bookkeeping(alphas: Alphas, rng: np.random.Generator) -> None:
    among = alphas.sample_two(rng)
    active = alphas.sample(rng, among)
    gates = np.zeros(among.shape)
    gates[np.arange(len(active)), active] = 1.0
    alphas.step(gates, among)


def _train(network: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    cross_entropy(network(x), y).backward()
    optimizer.step()


def kept_bytes(step: Step) -> int:
    """Bytes that autograd keeps in a step, views of one storage and parameters counted once or not at all."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(seen.values())


def show_memory() -> None:
    """Kept bytes and growth of the peak, each kind in a process of its own."""
    print(f"\n{'memory':34}{'kept by autograd':>20}{'growth of the peak':>20}")
    kinds = [
        "single network", "weights: one path", "architecture: two paths", "weights: all paths (DARTS)",
        "architecture: all paths (DARTS)", "authors' way: weights", "authors' way: architecture",
    ]  # fmt: skip
    for kind in kinds:
        ran = subprocess.run(
            [sys.executable, __file__, "--memory-of", kind], capture_output=True, text=True, check=True
        )
        kept, peak = (float(number) for number in ran.stdout.split())
        print(f"{kind:34}{kept:17.1f} MB{peak:17.1f} MB")


def print_memory_of(kind: str) -> None:
    """MB kept (mean of sampled steps) and MB of growth, for `show_memory`."""
    torch.set_num_threads(1)
    (step,) = steps(kind).values()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = statistics.mean(kept_bytes(step) for _ in range(12))
    print(kept / 1e6, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def show_times(rounds: int) -> None:
    """Medians, in turns."""
    torch.set_num_threads(1)
    found = steps()
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 3):
        for name, step in found.items():
            started = time.perf_counter()
            step()
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{'time of a step':34}{'median':>12}{'authors way':>14}{'times faster':>14}")
    for name, median in medians.items():
        other = medians.get(BESIDE.get(name, ""))
        beside = "" if other is None else f"{other:11.2f} ms{other / median:14.1f}"
        print(f"{name:34}{median:9.2f} ms{beside}")


def show_targets(draws: int) -> None:
    """Random probabilities and targets under the shipped tables: is what is derived within 5% below the target?"""
    print(
        f"\n{'hard targets, ' + str(draws) + ' of each':34}{'least ratio':>12}{'most':>8}{'in band':>9}{'seconds':>9}"
    )
    for path in sorted(TABLES.rglob("*.json")):
        table = read_table(path)
        described = dict(table.provenance["space"])
        space = make_space(described.pop("name"), described)
        predictor = TablePredictor(space, table)
        several = {slot.name: slot.options[-1] for slot in space.slots if slot.name in ("resolution", "width")}
        relaxation, rng, ratios = relax(space, several), np.random.default_rng(0), []
        options = [len(edge.options) for edge in relaxation.edges]
        started = time.perf_counter()
        for _ in range(draws):
            alphas = Alphas(options, 0.1)
            alphas.values += np.where(alphas.exists, 2 * rng.normal(size=alphas.values.shape), 0.0)
            drawn = np.stack([rng.integers(0, options) for _ in range(200)])
            archs = relaxation.archs(drawn)
            target = float(np.quantile(predictor.predict_ms(archs[relaxation.usable(archs)]), rng.uniform(0.05, 0.95)))
            ratios.append(derive(relaxation, alphas, predictor.predict_ms, target).ms / target)
        kind = f"{space.name}{'' if predictor.additive else ' (not additive)'}"
        share = np.mean([0.95 <= ratio <= 1 for ratio in ratios])
        seconds = (time.perf_counter() - started) / draws
        print(f"{kind:34}{min(ratios):12.3f}{max(ratios):8.3f}{share:9.0%}{seconds:9.2f}")


def show_search(images: Path, n_train: int, loss: str) -> None:
    """Three targets on part of a data set; accuracies on test images, inherited and after one epoch of training."""
    source = f"npz:{images}" if images.suffix == ".npz" else "torchvision:FashionMNIST"
    full = load_data(source, root=images if images.is_dir() else None, image_size=16)
    data = ImageData(
        full.name, full.x_train[:n_train], full.y_train[:n_train], full.x_valid[: n_train // 4],
        full.y_valid[: n_train // 4], full.x_test[:2000], full.y_test[:2000], full.class_names,
    )  # fmt: skip
    space = MobileNetV3Space(
        num_classes=data.num_classes, in_channels=data.channels, resolutions=(16,), depths=(1, 2, 3), kernels=(3, 5),
        expands=(2, 4), stem_width=16, stem_stride=1, stage_widths=(16, 32), stage_strides=(1, 2), se=(False, True),
        activations=("relu", "hardswish"), head_widths=(64, 64),
    )  # fmt: skip
    predict_ms = by_macs(space)
    targets = [2.0, 3.0, 4.0]
    started = time.perf_counter()
    config = ProxylessConfig(warmup_epochs=4, epochs=8, loss=loss)
    print(f"\nsearch on {n_train} images of {data.name}, loss {loss!r}, 1 ms = 1 M MACs")
    print("  target  predicted   ratio  expected at the end  inherited  1 epoch  anew")
    for found in search(relax(space), data, predict_ms, targets, config, max_threads=1):
        inherited = evaluate(found.network, data.x_test, data.y_test, data.mean, data.std, 16)
        torch.manual_seed(0)
        tuned, new = (
            train(network, data, 16, TrainConfig(epochs=1, learning_rate=0.05), max_threads=1).test_accuracy
            for network in (found.network, space.build(found.arch))
        )
        print(
            f"{found.target_ms:5.2f} ms{found.ms:8.3f} ms{found.ms / found.target_ms:8.3f}"
            f"{found.history[-1].expected_ms:18.2f} ms{inherited:10.1f}%{tuned:8.1f}%{new:7.1f}%"
        )
    print(f"{time.perf_counter() - started:.0f} s with one warm-up, all targets and the epochs after it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="measurements of each step")
    parser.add_argument("--draws", type=int, default=50, help="random targets for each shipped table")
    parser.add_argument("--images", type=Path, help="folder of torchvision's Fashion-MNIST, or an .npz file")
    parser.add_argument("--train", type=int, default=4000, help="training images of the search")
    parser.add_argument("--loss", default="add", help="its form: add, multiply or reinforce")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory_of(options.memory_of)
        return
    show_memory()
    show_times(options.rounds)
    show_targets(options.draws)
    if options.images:
        show_search(options.images, options.train, options.loss)


if __name__ == "__main__":
    main()
