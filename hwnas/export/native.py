"""The file that a target's runtime runs, where that is not the plain ONNX file: written, and checked on the device.

It is written from the same graph as the profiled networks (`hwnas/graphs`), with the trained weights, and every check
runs in the target's own runtime, on the target.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import ExportError
from hwnas.export.verify import Verification
from hwnas.graphs import suffix_of, write_graph
from hwnas.graphs.plain import plain_graph
from hwnas.graphs.ranges import measure_ranges
from hwprof.client import AgentClient, Output
from hwprof.files import companions
from hwprof.runtimes import RUNTIMES
from hwprof.target import Target

# Largest accepted difference of the logits, relative to the largest logit: float32 in another order, or the rounding of
# the precision through a whole network. What eight bits do to a network is for its accuracy to say.
TOLERANCE = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1}
# Images that int8 ranges are measured on, and bytes of images that travel to a device at once and in all.
CALIBRATION = 256
CHUNK_BYTES, ALL_BYTES = 16 << 20, 64 << 20

Images = Callable[[slice], Tensor]


def is_native(target: Target) -> bool:
    """Whether the target needs a file of its own beside the ONNX file of every export."""
    return target.runtime in RUNTIMES and (suffix_of(target), target.precision) != (".onnx", "fp32")


def native_name(name: str, target: Target) -> str:
    """The name of a network's file for the target; the plain ONNX file of any other target has another one."""
    precision = "" if target.precision == "fp32" else f".{target.precision}"
    return name + precision + suffix_of(target)


def write_native(
    module: nn.Module, input_shape: tuple[int, int, int], target: Target, calibration: Tensor, path: Path
) -> None:
    """Write the module as a file of the target's format, precision and batch.

    `calibration` (n, *input_shape) are images on which int8 activations are ranged. Raises what `write_graph` raises.
    """
    ranges = measure_ranges(module, calibration, [input_shape]) if target.precision == "int8" else None
    graph = plain_graph(module, [input_shape], batch=target.batch, ranges=ranges)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:  # a kill leaves no half file behind
        unfinished = Path(folder) / path.name
        write_graph(graph, target, unfinished)
        for file in (*companions(unfinished), unfinished):
            file.replace(path.with_name(file.name))


def verify_native(
    client: AgentClient, file: Path, module: nn.Module, target: Target, images: Images, labels: Tensor
) -> Verification:
    """Run the file on the device and the module here, on as many of the images as may travel.

    `images` gives a slice of them, (n, channels, height, width); `labels` are all of theirs. Raises ExportError if the
    logits differ by more than the precision explains, DeviceError if the device goes away.
    """
    module.eval()
    size = images(slice(0, 1)).numel() * 4
    count = min(len(labels), ALL_BYTES // size) // target.batch * target.batch
    step = max(1, CHUNK_BYTES // size // target.batch) * target.batch
    if count == 0:
        raise ExportError(f"{file.name} was given no whole batch of {target.batch} images to be verified on")
    correct, largest, difference = 0, 1.0, 0.0
    with TemporaryDirectory(prefix="hwnas-verify-") as folder:
        path = Path(folder) / "images.npy"
        for start in range(0, count, step):
            batch = images(slice(start, min(start + step, count)))
            np.save(path, batch.numpy())
            found = _logits(client.patiently(lambda: client.infer(file, [path])), file)
            with torch.inference_mode():
                expected = module(batch).numpy()
            if found.shape != expected.shape or not np.isfinite(found).all():
                raise ExportError(
                    f"{file.name} gives logits of shape {found.shape} (finite: {bool(np.isfinite(found).all())}) on "
                    f"{target.device}, the network {expected.shape}"
                )
            largest = max(largest, float(np.abs(expected).max()))
            difference = max(difference, float(np.abs(found - expected).max()))
            correct += int((found.argmax(axis=1) == labels[start : start + len(batch)].numpy()).sum())
    if difference > TOLERANCE.get(target.precision, np.inf) * largest:
        raise ExportError(
            f"{file.name} differs from its network by {difference:.3g} on {target.device} (logits up to {largest:.3g}, "
            f"accepted {TOLERANCE[target.precision]:g} of that): {target.runtime} computes something else"
        )
    return Verification(100.0 * correct / count, difference, count)


def _logits(outputs: list[Output], file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if len(outputs) != 1:
        raise ExportError(f"{file.name} gives {len(outputs)} outputs on the device, a network has one")
    return np.frombuffer(outputs[0].data, dtype="<f4").reshape(outputs[0].shape)
