"""The file that a target's runtime runs, where that is not the plain ONNX file: written, and checked on the device.

It is written from the same graph as the profiled networks (`hwnas/graphs`), with the trained weights, and every check
runs in the target's own runtime, on the target.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import ExportError
from hwnas.export.graph import graph_of
from hwnas.export.verify import Comparison, Images, Verification
from hwnas.graphs import suffix_of, write_graph
from hwprof.client import AgentClient, Output
from hwprof.files import companions
from hwprof.runtimes import RUNTIMES
from hwprof.target import Target

# Images that int8 ranges are measured on, and bytes of images that travel to a device at once and in all.
CALIBRATION = 256
CHUNK_BYTES, ALL_BYTES = 16 << 20, 64 << 20


def is_native(target: Target) -> bool:
    """Whether the target needs a file of its own beside the ONNX file of every export."""
    return target.runtime in RUNTIMES and (suffix_of(target), target.precision) != (".onnx", "fp32")


def native_name(name: str, target: Target) -> str:
    """The name of a network's file for the target; the plain ONNX file of any other target has another one."""
    precision = "" if target.precision == "fp32" else f".{target.precision}"
    return name + precision + suffix_of(target)


def write_native(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    target: Target,
    calibration: Tensor,
    path: Path,
    in_float: frozenset[str] = frozenset(),
) -> None:
    """Write the module as a file of the target's format, precision and batch.

    `calibration` (n, *input_shape) are images on which int8 activations are ranged; nodes `in_float` stay in float.
    Raises what `write_graph` raises.
    """
    graph = graph_of(module, input_shape, target.precision, target.batch, calibration, in_float)
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
    compared = Comparison(file.name, f"in {target.runtime} on {target.device}", target.precision)
    with TemporaryDirectory(prefix="hwnas-verify-") as folder:
        path = Path(folder) / "images.npy"
        for start in range(0, count, step):
            batch = images(slice(start, min(start + step, count)))
            np.save(path, batch.numpy())
            found = _logits(client.patiently(lambda: client.infer(file, [path])), file)
            with torch.inference_mode():
                compared.add(found, module(batch), labels[start : start + len(batch)])
    return compared.result()


def _logits(outputs: list[Output], file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if len(outputs) != 1:
        raise ExportError(f"{file.name} gives {len(outputs)} outputs on the device, a network has one")
    return np.frombuffer(outputs[0].data, dtype="<f4").reshape(outputs[0].shape)
