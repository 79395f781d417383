"""Sources that are arrays: scikit-learn's digits, and NumPy's .npz files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import DataError
from hwnas.train.sources.splits import LIMIT_BYTES, Labelled, Splits, renumbered

_CHANNELS = (1, 3, 4)  # what the axis of the channels can have: grey, colour, colour with opacity
_KEYS = "x_train, y_train, and optionally x_valid, y_valid, x_test, y_test"
_IMAGES = "uint8 (n, h, w), (n, h, w, channels) or (n, channels, h, w), or floats of these shapes in [0, 1]"


def load_digits(_: str, root: Path | None, image_size: int | None) -> Splits:
    """1,797 handwritten digits of 8 x 8 grey pixels, which come with scikit-learn (UCI optical recognition)."""
    from sklearn.datasets import load_digits as load

    digits = load()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return Splits(
        Labelled(pixels, digits.target.astype(np.int64)), None, None, tuple(str(digit) for digit in range(10))
    )


def load_npz(text: str, root: Path | None, image_size: int | None) -> Splits:
    """The images and labels of a .npz file; the names of the classes are the labels as they are there."""
    path = find(text, root)
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(entry.file_size for entry in archive.infolist())
        if size_bytes > LIMIT_BYTES:
            raise DataError(
                f"{path} holds {size_bytes / 2**30:.1f} GiB, above the limit of {LIMIT_BYTES / 2**30:.0f} GiB; "
                "store uint8 images, smaller ones or fewer"
            )
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: _array(path, file, key) for key in file.files if key[:2] in ("x_", "y_")}
    except DataError:
        raise
    except Exception as error:  # zipfile, its decompressors and NumPy each raise their own
        raise DataError(f"{path} cannot be read as a .npz file ({error}); write it with numpy.savez") from error
    train, valid, test = (_labelled(path, arrays, split) for split in ("train", "valid", "test"))
    if train is None:
        raise DataError(f"{path} has no arrays x_train and y_train, only {sorted(arrays)}; expected {_KEYS}")
    return renumbered(Splits(train, valid, test, ()))


def find(text: str, root: Path | None) -> Path:
    """The path as given, or else below `root`. Raises DataError if there is nothing."""
    candidates = [Path(text).expanduser(), *([root / text] if root is not None else [])]
    for path in candidates:
        if path.exists():
            return path
    raise DataError(f"no such file or folder: {' nor '.join(str(path.absolute()) for path in candidates)}")


def to_images(what: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    """Images in any usual layout -> (n, channels, height, width) uint8. Raises DataError naming `what`."""
    found = f"{what} is {array.dtype} of shape {array.shape}"
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        first, last = array.shape[1] in _CHANNELS, array.shape[3] in _CHANNELS
        if first == last:
            why = "the first and the last axis of an image could both" if first else "no axis of an image can"
            raise DataError(f"{found}: {why} be its channels (1, 3 or 4); expected {_IMAGES}")
        array = array if first else array.transpose(0, 3, 1, 2)
    else:
        raise DataError(f"{found}; expected {_IMAGES}")
    if 0 in array.shape:
        raise DataError(f"{found}: there are no pixels; expected {_IMAGES}")
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # false for NaN, too
            raise DataError(
                f"{found} with values from {low} to {high}; expected floats in [0, 1] without NaN, or uint8"
            )
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(f"{found}; expected {_IMAGES}: convert it with .astype('uint8') if its values are 0 to 255")
    return np.ascontiguousarray(array)


def _array(path: Path, file: Any, key: str) -> NDArray[Any]:
    try:
        return np.asarray(file[key])
    except ValueError as error:
        raise DataError(f"{path}: array {key!r} cannot be read ({error}); save plain numbers, not objects") from error


def _labelled(path: Path, arrays: dict[str, NDArray[Any]], split: str) -> Labelled | None:
    x_key, y_key = f"x_{split}", f"y_{split}"
    if x_key not in arrays and y_key not in arrays:
        return None
    for key, other in ((x_key, y_key), (y_key, x_key)):
        if key not in arrays:
            raise DataError(f"{path} has {other!r} but no array {key!r}; save both or neither")
    x, y = to_images(f"{path}: {x_key}", arrays[x_key]), arrays[y_key]
    found = f"{path}: {y_key} is {y.dtype} of shape {y.shape}"
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{found}; expected integer labels of shape (n,) or (n, 1)")
    if len(y) != len(x):
        raise DataError(f"{found}, but {x_key} has {len(x)} images; expected one label per image")
    return Labelled(x, y.astype(np.int64))
