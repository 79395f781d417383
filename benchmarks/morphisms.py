"""What children inherit: accuracy at once, after one epoch and after three, beside the same children from scratch.

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python benchmarks/morphisms.py                                    # scikit-learn's digits
    python benchmarks/morphisms.py --images images --train 4000       # Fashion-MNIST in the folder of torchvision

A parent of `morph` and one of `mobilenetv3` are trained for `--epochs`. For every kind of step, `--children` of the
parent's neighbours inherit its weights; a step that is not exact is also trained with the parent as teacher, the first
epoch with what the step left untouched frozen. Accuracies are those on the test images, the mean over children; the
parent's own is the yardstick. `--parents` repeats all of it with other seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hwnas.space import Arch, SearchSpace, rows_of
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.morph import MorphSpace
from hwnas.train.data import ImageData, load_data
from hwnas.train.distil import Distil
from hwnas.train.inherit import Inherited, inherit
from hwnas.train.loop import TrainConfig, evaluate, train

Curve = tuple[float, float, float]  # accuracy in percent at once, after one epoch, after three
TRAINED = 3
HOWS = ("inherited", "with teacher", "from scratch")


@dataclasses.dataclass(frozen=True)
class Row:
    """The mean curves of the children of one kind of step; `taught` is None for exact steps."""

    space: str
    kind: str
    exact: bool
    children: int
    parent: float
    inherited: Curve
    taught: Curve | None
    scratch: Curve


def spaces(data: ImageData, size: int) -> list[tuple[SearchSpace, Arch]]:
    """The two spaces, each with the architecture of the parent: in the middle, so that every step is possible."""
    morph = MorphSpace(
        num_classes=data.num_classes, in_channels=data.channels, resolution=size, widths=(8, 12, 16, 24, 32, 48),
        kernels=(3, 5), stages=2, max_depth=4,
    )  # fmt: skip
    choice = morph.describe((0,) * len(morph.slots)) | {"stem.width": 16}
    layers = {
        0: [(16, 3, "plain", "convex"), (24, 5, "separable", "none"), (16, 3, "plain", "none")],
        1: [(16, 3, "plain", "none"), (24, 5, "plain", "none"), (32, 3, "separable", "concat")],
    }
    for stage, rows in layers.items():
        choice[f"stage{stage}.depth"] = len(rows)
        for place, row in enumerate(rows, morph.max_depth - len(rows)):
            names = [f"stage{stage}.{place}.{part}" for part in ("width", "kernel", "conv", "skip")]
            choice |= dict(zip(names, row, strict=True))
    mobile = MobileNetV3Space(
        num_classes=data.num_classes, in_channels=data.channels, resolutions=(size,), width_mults=(0.5, 1.0, 1.5),
        depths=(1, 2, 3), kernels=(3, 5), expands=(2, 3, 4), stem_width=16, stem_stride=1, stage_widths=(16, 32),
        stage_strides=(1, 2), se=(False, True), activations=("relu", "hardswish"), head_widths=(64, 64),
    )  # fmt: skip
    middle = mobile.describe((0,) * len(mobile.slots)) | {"width": 1.0}
    for number, slot in enumerate(mobile.slots):
        if slot.name.endswith("depth"):
            middle[slot.name] = 2
        elif slot.name.endswith("expand"):
            middle[slot.name] = 3
        elif slot.name.endswith("kernel"):
            middle[slot.name] = (3, 5)[number // 2 % 2]
    return [(morph, morph.arch_of(choice)), (mobile, mobile.arch_of(middle))]


def kind_of(child: Inherited) -> str:
    """The step without its place; the first change where others follow from it."""
    first = next((clause for clause in child.step.split("; ") if "depth" in clause or "skip" in clause), child.step)
    change = re.sub(r"^stage\s?\d+: layer \d+ |^stage\d\.(\d\.)?", "", first.split("; ")[0])
    numbers = re.search(r"([\d.]+) -> ([\d.]+)$", change)
    if numbers is None:
        return change
    name = change[: numbers.start()].strip()
    return f"{name} {'larger' if float(numbers[2]) > float(numbers[1]) else 'smaller'}"


def curve(module: nn.Module, data: ImageData, size: int, seed: int, distil: Distil | None = None) -> Curve:
    """Train for three epochs; the accuracies on the way."""
    found = [accuracy(module, data, size)]
    config = TrainConfig(epochs=TRAINED, learning_rate=0.1, warmup_epochs=0.5, seed=seed)
    train(module, data, size, config, max_threads=1, distil=distil,
          progress=lambda *_: found.append(accuracy(module, data, size)))  # fmt: skip
    return found[0], found[1], found[TRAINED]


def accuracy(module: nn.Module, data: ImageData, size: int) -> float:
    """On the test images, in percent."""
    return evaluate(module, data.x_test, data.y_test, data.mean, data.std, size)


def compared(space: SearchSpace, arch: Arch, data: ImageData, options: argparse.Namespace) -> Iterator[Row]:
    """A row for every kind of step from the architecture."""
    size = space.input_shape(arch)[1]
    found: dict[tuple[str, bool], list[tuple[float, Curve, Curve | None, Curve]]] = defaultdict(list)
    for seed in range(options.parents):
        torch.manual_seed(seed)
        parent = space.build(arch)
        train(parent, data, size, TrainConfig(epochs=options.epochs, seed=seed), max_threads=1)
        own = accuracy(parent, data, size)
        taken: dict[tuple[str, bool], int] = defaultdict(int)
        for other in rows_of(np.random.default_rng(seed).permutation(space.neighbours(arch))):
            child = inherit(space, arch, parent, other, seed=seed)
            key = kind_of(child), child.exact
            taken[key] += 1
            if taken[key] > options.children:
                continue
            taught = None
            if not child.exact:
                distil = Distil(parent, frozen_epochs=1 if child.untouched else 0, untouched=child.untouched)
                twin = inherit(space, arch, parent, other, seed=seed).module
                taught = curve(twin, data, size, seed, distil)
            torch.manual_seed(1000 + seed)
            scratch = curve(space.build(other), data, size, seed)
            found[key].append((own, curve(child.module, data, size, seed), taught, scratch))
    for (kind, exact), rows in sorted(found.items(), key=lambda item: (not item[0][1], item[0][0])):
        parents, inherited, taught_curves, scratch_curves = zip(*rows, strict=True)
        yield Row(space.name, kind, exact, len(rows), statistics.mean(parents), _mean(inherited),
                  None if exact else _mean(taught_curves), _mean(scratch_curves))  # fmt: skip


def _mean(curves: tuple[Curve, ...]) -> Curve:
    at_once, one, three = (statistics.mean(values) for values in zip(*curves, strict=True))
    return at_once, one, three


def table(rows: list[Row]) -> Iterator[str]:
    """The rows as lines of a Markdown table."""
    heads = ["space", "step", "exact", "children", "parent", *(f"{how} 0 / 1 / 3" for how in HOWS)]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        curves = (row.inherited, row.taught or (), row.scratch)
        cells = [row.space, row.kind, "yes" if row.exact else "no", str(row.children), f"{row.parent:.1f}"]
        cells += [" / ".join(f"{value:.1f}" for value in one) for one in curves]
        yield f"| {' | '.join(cells)} |"


def images(options: argparse.Namespace) -> tuple[ImageData, int]:
    """The digits, or a part of Fashion-MNIST at 14 x 14 pixels, and their size."""
    if options.images is None:
        return load_data("digits"), 8
    full = load_data("torchvision:FashionMNIST", root=options.images, image_size=14)
    n = options.train
    return dataclasses.replace(full, x_train=full.x_train[:n], y_train=full.y_train[:n], x_test=full.x_test[:2000],
                               y_test=full.y_test[:2000]), 14  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder where torchvision keeps Fashion-MNIST; else the digits")
    parser.add_argument("--train", type=int, default=4000, help="training images of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=8, help="of the parents")
    parser.add_argument("--parents", type=int, default=1, help="of each space")
    parser.add_argument("--children", type=int, default=2, help="of each parent and kind of step")
    options = parser.parse_args()
    started = time.monotonic()
    data, size = images(options)
    rows = [row for space, arch in spaces(data, size) for row in compared(space, arch, data, options)]
    print("\n".join(table(rows)))
    print(f"\n{data.name}, {len(data.x_train)} training images, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
