"""Arrays on the device: inputs out of .npy files, random inputs to be timed with, outputs as text for the host."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwprof.errors import MeasurementError

if TYPE_CHECKING:
    from typing import TypeAlias

Array: TypeAlias = "np.ndarray[Any, Any]"  # a text: old Pythons cannot evaluate it


def read_arrays(files: Sequence[str]) -> list[Array]:
    """The arrays of .npy files. Raises MeasurementError on a file that is none, or would have to be unpickled."""
    try:
        return [np.load(Path(file), allow_pickle=False) for file in files]
    except (OSError, ValueError) as error:
        raise MeasurementError(f"the inputs cannot be read: {error}") from error


def random_images(shape: Sequence[int], dtype: Any = np.float32) -> Array:
    """Normal numbers of that shape, always the same."""
    return np.random.default_rng(0).standard_normal(tuple(shape)).astype(dtype)


def encoded(array: Array) -> dict[str, Any]:
    """An array as JSON: its shape and its numbers, float32, little-endian, base64."""
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode()}
