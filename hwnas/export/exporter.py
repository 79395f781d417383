"""Formats that networks are shipped in: what each has to offer, and a file in `formats/` for each.

A format of your own: a class of the protocol `Exporter` in a file, an entry in EXPORTERS, an example in `examples/`;
`hwnas.testing.exporters.check_exporter` tells whether it keeps the rules.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import ExportError, MissingPackageError
from hwprof.errors import MeasurementError, RuntimeMissingError, TargetError
from hwprof.target import Target

Array = NDArray[np.float32]
# (n, channels, height, width) float32 -> (n, classes) float32
Infer = Callable[[Array], Array]

EXPORTERS = {
    "onnx": "hwnas.export.formats.onnx:OnnxExporter",
    "tensorrt": "hwnas.export.formats.tensorrt:TensorRtExporter",
    "tflite": "hwnas.export.formats.tflite:TfliteExporter",
    "ncnn": "hwnas.export.formats.ncnn:NcnnExporter",
    "openvino": "hwnas.export.formats.openvino:OpenVinoExporter",
    "ort": "hwnas.export.formats.ort:OrtExporter",
    "pte": "hwnas.export.formats.pte:PteExporter",
    "pt2": "hwnas.export.formats.pt2:Pt2Exporter",
}
# runtime of a target -> the format of the files that are shipped for it
RUNTIME_FORMATS = {
    "onnxruntime": "onnx",
    "onnxruntime-cuda": "onnx",
    "tensorrt": "tensorrt",
    "litert": "tflite",
    "ncnn": "ncnn",
    "openvino": "openvino",
}


@dataclass(frozen=True, eq=False)
class ExportSpec:
    """What a file is to be, beside its module.

    `input_shape` (channels, height, width); `batch` images are usual in one inference (TensorRT chooses its kernels for
    them, other formats take any or one); int8 activations are ranged on `calibration`, (n, *input_shape) images as the
    module takes them; `metadata` goes into the file where the format has a place for it; in int8, the nodes `in_float`
    of the module's graph stay in float (see `sensitive.py`).
    """

    input_shape: tuple[int, int, int]
    precision: str = "fp32"
    batch: int = 1
    calibration: Tensor | None = field(default=None, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    in_float: frozenset[str] = frozenset()


class Exporter(Protocol):
    """A format. Packages of it are imported where they are used, so that one can be made where nothing is installed."""

    @property
    def name(self) -> str:
        """As in --format, and the name of its example in `examples/`."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the file that is loaded, and of the others that belong to it."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """What it can be written in, the plainest first."""

    @property
    def largest_batch(self) -> int | None:
        """Images that one inference can take at most; None: any number."""

    @property
    def layout(self) -> str:
        """How the file takes images: "nchw", or "nhwc" for channels last."""

    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        """Write the module in evaluation mode to `path`, and what belongs to it beside it; the module stays as it was.

        The folder is one that nobody reads yet: `hwnas.export.ship` writes, checks, and then shows it. Raises
        ExportError or SpaceError for what the format cannot hold, MissingPackageError with the install line.
        """

    def load(self, path: Path, precision: str) -> Infer:
        """The file in the format's own runtime on this machine, float32 images in "nchw" whatever the file's layout.

        Raises MissingPackageError where the runtime is not installed, DeviceError where the machine cannot run it,
        ExportError, also when called, for a file that cannot be used.
        """

    def read_metadata(self, path: Path) -> dict[str, str]:
        """What `spec.metadata` was; empty for a format without a place for it, then the card beside the file tells."""


def make_exporter(name: str) -> Exporter:
    """The exporter of a format. Raises ExportError on an unknown name."""
    if name not in EXPORTERS:
        raise ExportError(f"unknown format {name!r}; known: {', '.join(EXPORTERS)}")
    module, attribute = EXPORTERS[name].split(":")
    return cast(Exporter, getattr(importlib.import_module(module), attribute)())


def format_for(target: Target) -> str:
    """The format of the files shipped for a target. Raises ExportError for a runtime without one."""
    if target.runtime not in RUNTIME_FORMATS:
        raise ExportError(
            f"no format is shipped for the runtime {target.runtime!r}, only for {', '.join(RUNTIME_FORMATS)}; give "
            f"the format itself: --format {' or '.join(EXPORTERS)}"
        )
    return RUNTIME_FORMATS[target.runtime]


def require_precision(exporter: Exporter, precision: str) -> None:
    """Raise ExportError unless the format has the precision."""
    if precision not in exporter.precisions:
        raise ExportError(
            f"{exporter.name} files are not written in {precision!r}; they are in {', '.join(exporter.precisions)}"
        )


@contextmanager
def needs(what: str, packages: str) -> Iterator[None]:
    """Turn a failed import into a MissingPackageError that says what to install."""
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(
            f"{what} needs a package that is not installed here ({error}); pip install {packages}"
        ) from error


def load_in(runtime: str, path: Path, precision: str) -> Infer:
    """A file in one of hwprof's runtimes on this machine; what `Exporter.load` gives and raises."""
    from hwprof.runtimes import kind_of, make_runtime

    try:
        opened = make_runtime(runtime)
    except RuntimeMissingError as error:
        packages = kind_of(runtime).packages
        raise MissingPackageError(
            f"{path.name} runs in {runtime}, which is not installed here; pip install {packages}"
        ) from error
    models: dict[int, Any] = {}  # by batch, which these runtimes bind when they load

    def infer(images: Array) -> Array:
        batch = len(images)
        try:
            if batch not in models:
                target = Target(runtime=runtime, precision=precision, batch=batch)
                models[batch] = opened.load(path, target, profile_nodes=False)
            (logits,) = models[batch].infer([images])
        except (MeasurementError, TargetError, ValueError) as error:
            raise ExportError(f"{path.name} cannot be run: {error}") from error
        return cast(Array, logits)

    return infer
