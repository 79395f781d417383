"""Does an exported file compute what its module computes, and how accurate is the file itself?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from hwnas.errors import ExportError

# Largest accepted difference of the logits, relative to the largest logit (at least 1): float32 in another order.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verification:
    """Accuracy of the file in percent, largest difference of its logits from the module's, and on how many images."""

    accuracy: float
    max_difference: float
    images: int


def verify_onnx(path: Path, module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Verification:
    """Run the file in ONNX Runtime and the module in torch on real images; batches of (images float, labels).

    Batches may differ in size, which also proves the dynamic batch. Raises ExportError if the logits differ by more
    than TOLERANCE or the file does not run.
    """
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own unexported types
        raise ExportError(f"{path.name} cannot be loaded by ONNX Runtime: {error}") from error
    name = session.get_inputs()[0].name
    correct = count = 0
    largest = difference = 0.0
    module.eval()
    for images, labels in batches:
        with torch.inference_mode():
            expected = module(images).numpy()
        found = np.asarray(session.run(None, {name: images.numpy()})[0])
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise ExportError(
                f"{path.name} gives logits of shape {found.shape} (finite: {bool(np.isfinite(found).all())}), "
                f"the network {expected.shape}"
            )
        difference = max(difference, float(np.abs(found - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        correct += int((found.argmax(axis=1) == labels.numpy()).sum())
        count += len(labels)
    if count == 0:
        raise ExportError(f"{path.name} was given no image to be verified on")
    if difference > TOLERANCE * max(1.0, largest):
        raise ExportError(
            f"{path.name} differs from its network by {difference:.3g} on real images (logits up to {largest:.3g}, "
            f"accepted {TOLERANCE:g} of that); the exporter or the runtime computes something else"
        )
    return Verification(100.0 * correct / count, difference, count)
