"""ncnn on the CPU (Vulkan off): inputs bound once, one extractor an inference, layer by layer for node times.

Precision is what ncnn is allowed to do, the rest is its own choice. fp32: nothing but float32. fp16: half storage and
arithmetic, as on ARM; on x86 only the weights of linear layers are halves and all arithmetic is float32. bf16: bfloat16
storage. int8: layers that the file has scales for compute in int8, the others as in fp16, which is ncnn's default.
Optimisation "none" is without Winograd, sgemm and packed layouts.

ncnn computes what is asked for, so node times are those of asking one extractor for the layers' outputs one after the
other, in the order in which ncnn computes them anyway, unconverted. Each includes half a microsecond for the asking.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ncnn
import numpy as np

from hwprof.errors import MeasurementError, TargetError
from hwprof.runtimes import NodeProfile
from hwprof.runtimes.arrays import Array, random_images
from hwprof.runtimes.ncnn_files import has_int8_weights, input_shapes, layer_kinds, read_text, weights_path
from hwprof.target import Target
from hwprof.timing import Clock

LEVELS = ("all", "none")
_FIRST_GOOD_BF16 = 20260526  # on x86, older ones multiply wrong shapes or end the process
_SUPPORT = "cpu_support_"
_UNTIMED = ("Input", "Split")  # they only pass on what is there
_UNCONVERTED = 1  # extract's type: as it lies in memory


class NcnnRuntime:
    """ncnn's Python package."""

    def versions(self) -> dict[str, str]:
        features = [name[len(_SUPPORT) :] for name in dir(ncnn) if name.startswith(_SUPPORT) and getattr(ncnn, name)()]
        return {"ncnn": ncnn.__version__, "ncnn_cpu_features": " ".join(features) or "none", "vulkan": "off"}

    def clock(self, target: Target) -> Clock:
        # With several threads the process's CPU time is the sum of theirs, not the time of an inference.
        return Clock() if target.threads == 1 else Clock(cpu=None)

    def load(self, path: Path, target: Target, *, profile_nodes: bool) -> NcnnModel:
        if target.optimisation not in LEVELS:
            raise TargetError(f"ncnn has no optimisation level {target.optimisation!r}; it has {', '.join(LEVELS)}")
        if target.batch != 1:
            raise TargetError(f"ncnn runs one image at a time: target.batch must be 1, got {target.batch}")
        if target.precision == "bf16" and _released() < _FIRST_GOOD_BF16:
            raise TargetError(f"bf16 needs ncnn 1.0.{_FIRST_GOOD_BF16} or newer, this one is {ncnn.__version__}")
        return NcnnModel(path, target, profile_nodes)


class NcnnModel:
    """A network with its inputs bound."""

    def __init__(self, path: Path, target: Target, profile_nodes: bool) -> None:
        self._name = path.name
        text = read_text(path)
        unknown = sorted(kind for kind in layer_kinds(text) if ncnn.layer_to_index(kind) < 0)
        if unknown:
            raise MeasurementError(f"{path.name} has layers that ncnn {ncnn.__version__} lacks: {', '.join(unknown)}")
        if has_int8_weights(text) and target.precision != "int8":
            raise MeasurementError(f"{path.name} has int8 weights, which do not run in {target.precision}")
        self._net = ncnn.Net()
        _set_options(self._net.opt, target)
        if self._net.load_param(str(path)) or self._net.load_model(str(weights_path(path))):
            raise MeasurementError(f"ncnn cannot load {path.name}; its complaint is on the agent's standard error")
        indexes = dict(zip(self._net.input_names(), self._net.input_indexes()))
        self._shapes = {indexes[name]: shape for name, shape in input_shapes(text).items()}
        self._inputs = {index: _mat(random_images(shape)) for index, shape in self._shapes.items()}
        self._outputs = [index for index in self._net.output_indexes() if index not in self._shapes]
        if not self._outputs:
            raise MeasurementError(f"{path.name} computes nothing")
        # One container for all outputs: what it held is freed when it is given something else.
        self._held = ncnn.Mat()
        self._steps = _execution_order(self._net, self._outputs) if profile_nodes else None
        self._us: list[tuple[float, ...]] = []

    def run(self) -> None:
        extractor = self._extractor(self._inputs)
        if self._steps is not None:
            self._us.append(self._layer_times(extractor, [blob for _, blob in self._steps]))
        for output in self._outputs:
            self._extract(extractor, output)

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        shapes = [(1, *shape) for shape in self._shapes.values()]
        if [array.shape for array in inputs] != shapes:
            raise MeasurementError(
                f"{self._name} takes inputs of the shapes {shapes}, got {[array.shape for array in inputs]}"
            )
        extractor = self._extractor(
            {index: _mat(array[0].astype(np.float32)) for index, array in zip(self._shapes, inputs)}
        )
        outputs = []
        for output in self._outputs:
            self._extract(extractor, output)
            outputs.append(np.array(self._held, np.float32)[None])
        return outputs

    def close(self) -> NodeProfile | None:
        self._held.release()  # it lies in the network's memory
        self._net.clear()
        if self._steps is None:
            return None
        return NodeProfile(tuple(name for name, _ in self._steps), tuple(self._us))

    def _extractor(self, inputs: dict[int, Any]) -> Any:
        extractor = self._net.create_extractor()
        for index, mat in inputs.items():
            extractor.input(index, mat)
        return extractor

    def _extract(self, extractor: Any, blob: int) -> None:
        code = extractor.extract(blob, self._held)
        if code:
            raise MeasurementError(f"ncnn cannot run {self._name}: code {code}")

    def _layer_times(self, extractor: Any, blobs: Sequence[int]) -> tuple[float, ...]:
        """Microseconds of every layer, given their outputs in order."""
        extract, held, clock = extractor.extract, self._held, time.perf_counter_ns
        times = []
        for blob in blobs:
            start = clock()
            code = extract(blob, held, _UNCONVERTED)
            times.append((clock() - start) * 1e-3)
            if code:
                raise MeasurementError(f"ncnn cannot run {self._name}: code {code}")
            # Held, it would be copied by a next layer that otherwise works in place.
            held.release()
        return tuple(times)


def _released() -> int:
    """The date in ncnn's version, 1.0.YYYYMMDD."""
    date = ncnn.__version__.split(".")[-1]
    return int(date) if date.isdecimal() else 0


def _set_options(options: Any, target: Target) -> None:
    half = target.precision in ("fp16", "int8")
    wanted = {
        "num_threads": target.threads,
        "lightmode": True,
        "use_vulkan_compute": False,
        **dict.fromkeys(("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"), half),
        **dict.fromkeys(("use_bf16_packed", "use_bf16_storage"), target.precision == "bf16"),
        **dict.fromkeys(("use_int8_inference", "use_int8_packed"), target.precision == "int8"),
        **dict.fromkeys(("use_int8_storage", "use_int8_arithmetic"), target.precision == "int8"),
        **dict.fromkeys(("use_winograd_convolution", "use_sgemm_convolution"), target.optimisation == "all"),
        "use_packing_layout": target.optimisation == "all",
    }
    for name, value in wanted.items():
        if hasattr(options, name):  # a version without an option does not do what it would allow
            setattr(options, name, value)


def _execution_order(net: Any, outputs: Sequence[int]) -> list[tuple[str, int]]:
    """(name, first output) of the layers in the order in which ncnn computes the outputs: inputs first, depth first."""
    layers, producers = net.layers(), [blob.producer for blob in net.blobs()]
    order: list[tuple[str, int]] = []
    seen: set[int] = set()
    waiting = [(producers[output], False) for output in reversed(outputs)]
    while waiting:
        number, ready = waiting.pop()
        layer = layers[number]
        if ready:
            if layer.type not in _UNTIMED:
                order.append((layer.name, layer.tops[0]))
        elif number not in seen:
            seen.add(number)
            waiting.append((number, True))
            waiting.extend((producers[blob], False) for blob in reversed(layer.bottoms))
    return order


def _mat(array: Array) -> Any:
    """An array in memory of ncnn's own: what it shares with NumPy it must not work on in place."""
    return ncnn.Mat(np.ascontiguousarray(array)).clone()
