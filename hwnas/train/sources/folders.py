"""Folders of image files, one folder per class, and how files and Pillow images become arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hwnas.errors import DataError
from hwnas.train.sources.arrays import find
from hwnas.train.sources.splits import Labelled, Splits, check_memory

_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))
# What Pillow may take a file for, whatever its name says: it has formats that start other programs (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_MOST_PIXELS = 2**26  # of one image: a small file can be a very large image
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 3, "RGBX": 3, "CMYK": 3, "YCbCr": 3}
_KINDS = {1: "grey", 3: "in colour"}
_NO_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises on a bad file

Opener = Callable[[int], Image.Image]


def load_folder(text: str, root: Path | None, image_size: int | None) -> Splits:
    """Image files in PATH/train/CLASS/, and PATH/valid or val/CLASS/ and PATH/test/CLASS/ if there; or PATH/CLASS/.

    Without a test folder, valid (as in ImageNet) is the test set.
    """
    path = find(text, root)
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; expected one with a folder of images per class")
    if not (path / "train").is_dir():
        names = _class_names(path)
        return Splits(_load_split(path, names, image_size, None), None, None, names)
    names = _class_names(path / "train")
    train = _load_split(path / "train", names, image_size, None)
    valid, test = (
        next((_load_split(path / name, names, image_size, train) for name in kind if (path / name).is_dir()), None)
        for kind in (("valid", "val", "validation"), ("test",))
    )
    return Splits(train, None, valid, names) if test is None else Splits(train, valid, test, names)


def decode(
    open_image: Opener, names: Sequence[str], image_size: int | None, channels: int | None, what: str
) -> NDArray[np.uint8]:
    """(n, channels, height, width) uint8 of the n images that `open_image(index)` gives.

    With `image_size`, the middle square of an image is resized to it: bilinear, antialias. Without, all images must
    have one size. `channels` of None takes those of the first image; the rest must be grey or colour like it.
    """
    first = _opened(open_image, 0, names[0])
    channels = channels or _CHANNELS[first.mode]
    width, height = (image_size, image_size) if image_size else first.size
    check_memory(what, len(names), channels, height, width)
    images = np.empty((len(names), channels, height, width), dtype=np.uint8)

    def fill(index: int) -> None:
        image = _opened(open_image, index, names[index])
        if _CHANNELS[image.mode] != channels:
            raise DataError(
                f"{names[index]} is {_KINDS[_CHANNELS[image.mode]]} (mode {image.mode}) where the images before it are "
                f"{_KINDS[channels]}; convert all to one kind"
            )
        image = image.convert("L" if channels == 1 else "RGB")
        if image_size:
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
            image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box)
        if image.size != (width, height):
            raise DataError(
                f"{names[index]} has {image.width} x {image.height} pixels where the images before it have "
                f"{width} x {height}; give image_size to bring all to one size"
            )
        images[index] = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes and resizes outside of the GIL
        for _ in pool.map(fill, range(len(names))):
            pass
    return images


def _class_names(path: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    for name in names:  # they are written into cards and reports
        if not name.isprintable():
            raise DataError(f"{path} has the class folder {name!r}; rename it to characters that can be shown")
    if len(names) < 2:
        raise DataError(
            f"{path} has {len(names)} class folder(s) {list(names)}; expected at least 2, with images inside"
        )
    return names


def _load_split(path: Path, names: Sequence[str], image_size: int | None, like: Labelled | None) -> Labelled:
    """The images of PATH/CLASS/, in the order of the classes and of the sorted file names."""
    unknown = set(_class_names(path)) - set(names)
    if unknown:
        raise DataError(
            f"{path} has class {min(unknown)!r}, which the training images have not; they have {list(names)}"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = (path / name).rglob("*")
        members = sorted(
            file for file in found if file.suffix.lower() in _SUFFIXES and file.name[0] != "." and file.is_file()
        )
        if not members and (like is None or (path / name).is_dir()):
            raise DataError(f"class folder {path / name} has no images; expected files like {sorted(_SUFFIXES)}")
        files += members
        labels += [label] * len(members)
    channels = None if like is None else like.x.shape[1]

    def open_file(index: int) -> Image.Image:
        try:
            with files[index].open("rb") as file:
                image = Image.open(file, formats=_FORMATS)
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels are more than {_MOST_PIXELS}")
                image.load()
        except Exception as error:  # each of Pillow's formats raises its own on a bad file
            raise DataError(f"{files[index]} cannot be read as an image ({error}); replace or remove it") from error
        return image

    x = decode(open_file, [str(file) for file in files], image_size, channels, str(path))
    return Labelled(x, np.array(labels, dtype=np.int64))


def _opened(open_image: Opener, index: int, name: str) -> Image.Image:
    """An image turned as its camera says (EXIF). Raises DataError if it cannot be read or has no 8-bit pixels."""
    try:
        image: Image.Image = ImageOps.exif_transpose(open_image(index))
    except _NO_IMAGE as error:
        raise DataError(f"{name} cannot be read as an image ({error}); replace or remove it") from error
    if image.mode not in _CHANNELS:
        raise DataError(f"{name} has pixels of mode {image.mode}; convert it to 8 bits, grey or RGB")
    return image
