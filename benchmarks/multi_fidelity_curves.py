"""Learning curves of real trainings, recorded once, so that rules which stop trainings can be replayed on them.

Random small networks of `mobilenetv3` learn a fixed part of Fashion-MNIST for `EPOCHS` epochs each, from weights and
batches that follow from the seed 0. A finished training is a line of JSON on disk; a second call goes on after the
last one. The cost that is known before training is the network's multiply-adds, which need no device.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from hwnas.space import format_arch, rows_of, unique_archs
from hwnas.spaces import make_space
from hwnas.train.data import ImageData, load_data
from hwnas.train.loop import TrainConfig, train

SPACE = make_space(
    "mobilenetv3",
    {
        "resolutions": [8, 12, 16],
        "width_mults": [0.25, 0.5, 1.0, 2.0],
        "depths": [1, 2, 3],
        "kernels": [3, 5],
        "expands": [2, 4],
        "stem_width": 8,
        "stem_stride": 1,
        "stage_widths": [8, 16, 24],
        "stage_strides": [2, 2, 1],
        "se": [False, True, True],
        "activations": ["relu", "hardswish", "hardswish"],
        "head_widths": [96, 96],
        "in_channels": 1,
        "num_classes": 10,
    },
)
EPOCHS = 16
TRAIN_IMAGES, VALID_IMAGES = 3000, 4000


@dataclass(frozen=True)
class Recorded:
    """One training: multiply-adds in millions, validation accuracy in % after every epoch, seconds by the clock."""

    arch: str
    macs_m: float
    curve: tuple[float, ...]
    seconds: float


def read_curves(path: Path) -> list[Recorded]:
    """The recorded trainings in the order in which they were made; none if there is no such file."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Recorded(**{**row, "curve": tuple(row["curve"])}) for row in rows]


def record_curves(path: Path, images: Path, networks: int) -> Iterator[Recorded]:
    """Train the networks that the file does not have yet, one thread each, and append them; each as it is done."""
    done = {row.arch for row in read_curves(path)}
    archs = rows_of(unique_archs(SPACE.sample(4 * networks, np.random.default_rng(0))))[:networks]
    left = [arch for arch in archs if format_arch(arch) not in done]
    if not left:
        return
    data = _part_of(load_data("torchvision:FashionMNIST", root=images, image_size=SPACE.largest_input[1]))
    for arch in left:
        curve: list[float] = []
        torch.manual_seed(0)
        result = train(
            SPACE.build(arch),
            data,
            SPACE.input_shape(arch)[1],
            TrainConfig(epochs=EPOCHS, augment="none"),
            max_threads=1,
            progress=lambda epoch, planned, facts, curve=curve: curve.append(facts["valid_accuracy"]),  # type: ignore[misc]
        )
        macs_m = sum(block.macs for block in SPACE.blocks(arch)) / 1e6
        row = Recorded(format_arch(arch), macs_m, tuple(curve), round(result.seconds, 2))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        yield row


def _part_of(full: ImageData) -> ImageData:
    """A fixed random part of the images; the test images, which nothing here reads, cut to a few."""
    rng = np.random.default_rng(0)
    train_rows, valid_rows = (
        torch.from_numpy(rng.permutation(len(y))[:n].copy())
        for y, n in ((full.y_train, TRAIN_IMAGES), (full.y_valid, VALID_IMAGES))
    )
    return ImageData(
        full.name,
        full.x_train[train_rows],
        full.y_train[train_rows],
        full.x_valid[valid_rows],
        full.y_valid[valid_rows],
        full.x_test[:64],
        full.y_test[:64],
        full.class_names,
    )
