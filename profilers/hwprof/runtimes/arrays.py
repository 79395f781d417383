"""Arrays on the device: inputs out of .npy files, random inputs to be timed with, outputs as text for the host."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwprof.errors import MeasurementError
from hwprof.runtimes import LoadedModel

if TYPE_CHECKING:
    from typing import TypeAlias

Array: TypeAlias = "np.ndarray[Any, Any]"  # a text: old Pythons cannot evaluate it


def read_arrays(files: Sequence[str]) -> list[Array]:
    """The arrays of .npy files. Raises MeasurementError on a file that is none, or would have to be unpickled."""
    try:
        return [np.load(Path(file), allow_pickle=False) for file in files]
    except Exception as error:  # of the file system, and what NumPy raises on damage: MemoryError, SyntaxError, ...
        raise MeasurementError(f"the inputs cannot be read: {error}") from error


def infer_batches(model: LoadedModel, inputs: Sequence[Array], batch: int) -> list[Array]:
    """The outputs for inputs of any number of images, run batch by batch; a model without images runs once.

    Raises MeasurementError if the images are no whole number of batches.
    """
    if not inputs or any(array.ndim == 0 for array in inputs):
        return model.infer(inputs)
    images = {len(array) for array in inputs}
    if len(images) > 1 or max(images) % batch:
        raise MeasurementError(f"inputs of {sorted(images)} images are no whole number of batches of {batch}")
    parts = [model.infer([array[start : start + batch] for array in inputs]) for start in range(0, max(images), batch)]
    return [np.concatenate(outputs) for outputs in zip(*parts)]


def random_images(shape: Sequence[int], dtype: Any = np.float32) -> Array:
    """Normal numbers of that shape, always the same."""
    return np.random.default_rng(0).standard_normal(tuple(shape)).astype(dtype)


def encoded(array: Array) -> dict[str, Any]:
    """An array as JSON: its shape and its numbers, float32, little-endian, base64."""
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode()}
