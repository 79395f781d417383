"""Does an exported file compute what its module computes, and how accurate is the file itself?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from hwnas.errors import ExportError
from hwnas.export.exporter import Infer

# Largest accepted difference of the logits, relative to the largest logit (at least 1): float32 in another order, or
# the rounding of the precision through a whole network. What eight bits do to a network is for its accuracy to say.
TOLERANCE = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1}

# A slice of the images -> (n, channels, height, width) float, as the module takes them.
Images = Callable[[slice], Tensor]


@dataclass(frozen=True)
class Verification:
    """Accuracy of the file in percent, largest difference of its logits from the module's, and on how many images.

    `module_accuracy` is that of the module on the same images.
    """

    accuracy: float
    max_difference: float
    images: int
    module_accuracy: float


class Comparison:
    """Batch by batch, a file's logits beside its module's; `where` says in errors what computed the file's."""

    def __init__(self, file: str, where: str, precision: str) -> None:
        self._file, self._where, self._precision = file, where, precision
        self._right, self._expected_right, self._count = 0, 0, 0
        self._largest, self._difference = 1.0, 0.0

    def add(self, found: np.ndarray[Any, Any], expected: Tensor, labels: Tensor) -> None:
        """(n, classes) logits of both and the labels (n,). Raises ExportError for another shape or no numbers."""
        logits = expected.numpy()
        if found.shape != logits.shape or not np.isfinite(found).all():
            raise ExportError(
                f"{self._file} gives logits of shape {found.shape} (finite: {bool(np.isfinite(found).all())}) "
                f"{self._where}, the network {logits.shape}"
            )
        self._difference = max(self._difference, float(np.abs(found - logits).max()))
        self._largest = max(self._largest, float(np.abs(logits).max()))
        self._right += int((found.argmax(axis=1) == labels.numpy()).sum())
        self._expected_right += int((logits.argmax(axis=1) == labels.numpy()).sum())
        self._count += len(labels)

    def result(self) -> Verification:
        """Raises ExportError if the logits differ by more than the precision explains, or there were none."""
        if self._count == 0:
            raise ExportError(f"{self._file} was given no image to be verified on")
        accepted = TOLERANCE.get(self._precision, np.inf)
        if self._difference > accepted * self._largest:
            raise ExportError(
                f"{self._file} differs from its network by {self._difference:.3g} {self._where} (logits up to "
                f"{self._largest:.3g}, accepted {accepted:g} of that): writer or runtime compute something else"
            )
        accuracy, module_accuracy = (100.0 * right / self._count for right in (self._right, self._expected_right))
        return Verification(accuracy, self._difference, self._count, module_accuracy)


def verify(
    infer: Infer, file: str, precision: str, module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Verification:
    """Run a file and its module on real images; batches of (images float, labels), as the module takes them.

    Batches may differ in size, which also proves the dynamic batch. Raises ExportError if the logits differ by more
    than TOLERANCE of the precision or the file does not run.
    """
    module.eval()
    compared = Comparison(file, "on real images", precision)
    for images, labels in batches:
        with torch.inference_mode():
            compared.add(infer(images.numpy()), module(images), labels)
    return compared.result()


def batches_of(images: Images, labels: Tensor, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    """All images with their labels (n,), in batches of at most that size."""
    for start in range(0, len(labels), size):
        part = slice(start, min(start + size, len(labels)))
        yield images(part), labels[part]


def verify_onnx(path: Path, module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Verification:
    """As `verify`, of a float32 ONNX file in ONNX Runtime."""
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own unexported types
        raise ExportError(f"{path.name} cannot be loaded by ONNX Runtime: {error}") from error
    name = session.get_inputs()[0].name
    return verify(lambda images: session.run(None, {name: images})[0], path.name, "fp32", module, batches)
