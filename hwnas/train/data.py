"""Labelled images in memory, and where they come from.

    digits                         scikit-learn's digits: real images, no download, for first steps and tests
    torchvision:FashionMNIST       a classification data set of torchvision, options as :NAME=VALUE
    folder:PATH                    image files in PATH/CLASS/, or PATH/train/CLASS/, PATH/val/CLASS/, PATH/test/CLASS/
    npz:PATH                       arrays x_train, y_train, and optionally x_valid, y_valid, x_test, y_test

Splits that a source does not have are cut from its training images, the same share of every class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwnas.errors import DataError
from hwnas.train.preprocess import resize
from hwnas.train.sources.arrays import load_digits, load_npz
from hwnas.train.sources.folders import load_folder
from hwnas.train.sources.splits import Labelled, Splits, check_memory, split_off
from hwnas.train.sources.vision import load_torchvision

SOURCES: dict[str, Callable[[str, Path | None, int | None], Splits]] = {
    "digits": load_digits,
    "torchvision": load_torchvision,
    "folder": load_folder,
    "npz": load_npz,
}
_TEST_FRACTION = 0.2


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images (n, channels, height, width) uint8 with labels (n,) int64, each an index of `class_names`.

    Raises DataError if the parts do not fit together.
    """

    name: str
    x_train: Tensor = field(repr=False)
    y_train: Tensor = field(repr=False)
    x_valid: Tensor = field(repr=False)
    y_valid: Tensor = field(repr=False)
    x_test: Tensor = field(repr=False)
    y_test: Tensor = field(repr=False)
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(f"{self.name} has {self.num_classes} class(es) {self.class_names}; expected at least 2")
        shape = tuple(self.x_train.shape[1:])
        for split in ("train", "valid", "test"):
            x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
            found = f"{self.name}: {split} has images {x.dtype} {tuple(x.shape)} and labels {y.dtype} {tuple(y.shape)}"
            if x.dtype != torch.uint8 or x.ndim != 4 or y.dtype != torch.int64 or y.ndim != 1 or not x.numel():
                raise DataError(f"{found}; expected uint8 (n, channels, height, width) and int64 (n,)")
            if len(x) != len(y):
                raise DataError(f"{found}; expected one label per image")
            if tuple(x.shape[1:]) != shape:
                raise DataError(
                    f"{found}, where the training images are {shape}; give image_size, or bring all to one shape"
                )
            if int(y.min()) < 0 or int(y.max()) >= self.num_classes:
                raise DataError(
                    f"{found} from {int(y.min())} to {int(y.max())}; expected 0 to {self.num_classes - 1}, "
                    f"an index of the {self.num_classes} class names"
                )
        counts = self.y_train.bincount(minlength=self.num_classes)
        if int(counts.min()) == 0:
            raise DataError(f"{self.name}: class {self.class_names[int(counts.argmin())]!r} has no training image")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return int(self.x_train.shape[1])

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the training images, pixels in [0, 1]."""
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation likewise; at least one grey level (1/255), so that it can be divided by."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """From the counts of the 256 levels: exact, whatever the order, and without a float copy of the images."""
        levels = np.arange(256) / 255
        means, stds = [], []
        for channel in range(self.channels):
            counts = np.zeros(256, dtype=np.int64)
            for images in torch.split(self.x_train[:, channel], 4096):
                counts += np.bincount(images.numpy(force=True).ravel(), minlength=256)
            shares = counts / counts.sum()
            means.append(float(shares @ levels))
            stds.append(max(float(np.sqrt(shares @ (levels - means[-1]) ** 2)), 1 / 255))
        return tuple(means), tuple(stds)


def load_data(
    source: str,
    *,
    root: Path | None = None,
    image_size: int | None = None,
    valid_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """The images that `source` names; the module's text lists what it can be. A path alone is a folder or .npz file.

    `root`: where torchvision keeps its files, and where paths are looked for that do not exist as given.
    `image_size` brings all images to that height and width: the middle square, resized bilinearly with antialias.
    `valid_fraction` of the training images of every class become valid images, drawn by `seed`, if the source has no
    such split; a missing test split is a fifth of every class and the same for every seed.

    Raises DataError: what is wrong, and what to do.
    """
    if not 0 < valid_fraction < 1:
        raise DataError(f"valid_fraction must be between 0 and 1, got {valid_fraction}")
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be at least 1 pixel, got {image_size}")
    if seed < 0:
        raise DataError(f"seed must be 0 or above, got {seed}")
    kind, _, text = source.partition(":")
    if kind not in SOURCES:
        path = Path(source).expanduser()
        kind, text = "npz" if path.suffix == ".npz" else "folder" if source and path.is_dir() else "", source
    if kind not in SOURCES:
        raise DataError(
            f"data source {source!r} is neither a folder nor a .npz file nor one of: "
            "digits, torchvision:NAME, folder:PATH, npz:PATH"
        )
    splits = SOURCES[kind](text, root, image_size)
    names, train, valid, test = splits.class_names, splits.train, splits.valid, splits.test
    if test is None:
        train, test = split_off(train, _TEST_FRACTION, 0, names)
    if valid is None:
        train, valid = split_off(train, valid_fraction, seed, names)
    x_train, y_train = _tensors(source, train, image_size)
    x_valid, y_valid = _tensors(source, valid, image_size)
    x_test, y_test = _tensors(source, test, image_size)
    return ImageData(source, x_train, y_train, x_valid, y_valid, x_test, y_test, names)


def _tensors(what: str, part: Labelled, image_size: int | None) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(part.x)
    if image_size is not None:
        height, width = x.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        check_memory(what, len(x), x.shape[1], image_size, image_size)
        x = resize(x[:, :, top : top + side, left : left + side], image_size).contiguous()
    return x, torch.from_numpy(part.y)
