"""Labelled images as a source finds them, before missing splits are cut from the training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import DataError

LIMIT_BYTES = 8 * 2**30  # decoded images are kept in memory: more than this is refused


@dataclass(frozen=True)
class Labelled:
    """Images (n, channels, height, width) uint8 with their labels (n,) integers."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """What a source has; None where it has no such split. Labels are indices of `class_names`."""

    train: Labelled
    valid: Labelled | None
    test: Labelled | None
    class_names: tuple[str, ...]


def renumbered(splits: Splits) -> Splits:
    """The labels of the training images renumbered to 0, 1, 2, ... in their order.

    A label that `class_names` covers keeps that name, any other is named by its number. Raises DataError if a label of
    the other splits is not among those of the training images.
    """
    values = np.unique(splits.train.y)
    given = splits.class_names
    names = tuple(given[value] if 0 <= value < len(given) else str(value) for value in values.tolist())

    def renumber(split: str, part: Labelled) -> Labelled:
        unknown = np.setdiff1d(part.y, values)
        if len(unknown):
            raise DataError(
                f"the {split} images have label {unknown[0]}, which no training image has; those have "
                f"{len(values)} labels from {values[0]} to {values[-1]}: add images of it, or leave it out"
            )
        return Labelled(part.x, np.searchsorted(values, part.y).astype(np.int64))

    return Splits(
        renumber("train", splits.train),
        None if splits.valid is None else renumber("valid", splits.valid),
        None if splits.test is None else renumber("test", splits.test),
        names,
    )


def split_off(source: Labelled, fraction: float, seed: int, names: Sequence[str]) -> tuple[Labelled, Labelled]:
    """(rest, part): about `fraction` of every class, at least one image of it in each. Raises DataError if too few."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(source.y), dtype=bool)
    for label, name in enumerate(names):
        members = np.flatnonzero(source.y == label)
        if len(members) < 2:
            raise DataError(
                f"class {name!r} has {len(members)} image(s) where a split is to be cut off; "
                "give it at least 2 (3 where both valid and test are cut off), or remove the class"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        taken[rng.permutation(members)[:count]] = True
    return Labelled(source.x[~taken], source.y[~taken]), Labelled(source.x[taken], source.y[taken])


def check_memory(what: str, n: int, channels: int, height: int, width: int) -> None:
    """Raise DataError if that many decoded images are too much to keep in memory."""
    size_bytes = n * channels * height * width
    if size_bytes > LIMIT_BYTES:
        raise DataError(
            f"{what}: {n} images of {channels} x {height} x {width} bytes need {size_bytes / 2**30:.1f} GiB of memory, "
            f"above the limit of {LIMIT_BYTES / 2**30:.0f} GiB; lower image_size, or use fewer images"
        )
