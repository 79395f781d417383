"""ONNX to a TensorRT engine, by one builder for TensorRT 8.6, 10 and 11.

From TensorRT 10 on, networks are strongly typed: precision is what the ONNX file says, half-precision initialisers or
QuantizeLinear / DequantizeLinear pairs. (11 has nothing else: its FP16 and INT8 flags and its calibrators are gone.) A
file that does not hold the precision that its target names is refused, so no number is published under a wrong name.
TensorRT 8 takes the same files, written for it as an older ONNX (see hwprof.runtimes.tensorrt_8), and gets the flags
that let it choose kernels of that precision.

TF32 is off unless asked for ("all+tf32"): with it, float32 convolutions multiply with 10 bits of mantissa, which is
not what fp32 means elsewhere in a comparison. TensorRT's own default is on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorrt as trt

from hwprof.errors import MeasurementError, TargetError
from hwprof.runtimes.options import require_one_thread, split_optimisation
from hwprof.runtimes.tensorrt_8 import older_onnx
from hwprof.runtimes.tensorrt_cache import attach_timing_cache, save_timing_cache
from hwprof.target import Target

MAJOR = int(trt.__version__.partition(".")[0])
# TensorRT's builder optimisation levels; 3 is its own default, 5 tries every kernel and takes many times as long.
LEVELS = {"none": 0, "basic": 1, "extended": 2, "all": 3, "exhaustive": 5}
OPTIONS = ("tf32", "version-compatible", "hardware-compatible")
# The types of tensors that a network of a precision has, and must not have.
_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}


@dataclass(frozen=True)
class Settings:
    """Everything that makes another engine out of the same file.

    `batches` are the smallest, the usual and the largest batch of a model whose batch is dynamic. A version-compatible
    engine runs in later TensorRTs of the same major version, a hardware-compatible one on every GPU since Ampere; both
    can be slower. `workspace_bytes` limits the memory that kernels may use beside the weights and activations.
    """

    precision: str
    batches: tuple[int, int, int]
    level: int = 3
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    workspace_bytes: int | None = None
    detailed: bool = True

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def settings_for(
    target: Target,
    *,
    batches: tuple[int, int, int] | None = None,
    workspace_bytes: int | None = None,
    detailed: bool = True,
) -> Settings:
    """The settings of a target. Raises TargetError on one that TensorRT, or this version of it, does not have."""
    require_one_thread(target)
    level, options = split_optimisation(target, LEVELS, OPTIONS)
    if target.precision == "bf16" and MAJOR < 10:
        raise TargetError(f"TensorRT {trt.__version__} has no bf16; take fp16, or TensorRT 10")
    least, usual, most = batches or (target.batch,) * 3
    if not 1 <= least <= usual <= most or not least <= target.batch <= most:
        raise TargetError(f"batches must be 1 <= min <= opt <= max and hold {target.batch}, got {batches}")
    return Settings(
        precision=target.precision,
        batches=(least, usual, most),
        level=LEVELS[level],
        tf32="tf32" in options,
        version_compatible="version-compatible" in options,
        hardware_compatible="hardware-compatible" in options,
        workspace_bytes=workspace_bytes,
        detailed=detailed,
    )


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT says went wrong; the rest is not for us."""

    def __init__(self) -> None:
        super().__init__()
        self._errors: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self._errors.append(msg)

    def take(self) -> str:
        """The last errors, once."""
        text = "; ".join(self._errors[-3:]) or "TensorRT gave no reason"
        self._errors.clear()
        return text


def build_plan(model: Path, settings: Settings, timing_cache: Path) -> bytes:
    """The serialised engine of an ONNX file. A GPU must be there, and is used to find the fastest kernels.

    Raises MeasurementError with the node and the reason where TensorRT cannot take the file.
    """
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags())
    _parse(model, network, log)
    _check_network(model, network, settings)
    config = builder.create_builder_config()
    _configure(config, settings)
    _shape(model, builder, network, config, settings)
    attach_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise MeasurementError(f"TensorRT {trt.__version__} cannot build {model.name}: {log.take()}")
    save_timing_cache(config, timing_cache)
    return bytes(memoryview(plan))


def _network_flags() -> int:
    if MAJOR >= 11:
        return 0  # all networks are strongly typed
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED if MAJOR == 10 else flags.EXPLICIT_BATCH)


def _parse(model: Path, network: Any, log: Log) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(model)) if MAJOR >= 10 else parser.parse(older_onnx(model)):
        return
    errors = [_parse_error(parser.get_error(index)) for index in range(parser.num_errors)]
    raise MeasurementError(f"TensorRT {trt.__version__} cannot read {model.name}: {'; '.join(errors) or log.take()}")


def _parse_error(error: Any) -> str:
    # TensorRT 8 knows the index of the node only.
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = f" ({error.node_operator()})" if hasattr(error, "node_operator") else ""
    return f"node {name or error.node()}{operator}: {error.desc()}"


def _check_network(model: Path, network: Any, settings: Settings) -> None:
    """Refuse what would be timed under a wrong name; TensorRT 8 chooses precision by flags, whatever the file's."""
    if network.num_layers == 0:  # to the parser, no bytes at all are a model
        raise MeasurementError(f"{model.name} holds no network")
    if MAJOR < 10:
        return
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    tensors = [layer.get_output(index) for layer in layers for index in range(layer.num_outputs)]
    tensors += [network.get_input(index) for index in range(network.num_inputs)]
    types = {tensor.dtype.name for tensor in tensors}
    wanted = _TYPES[settings.precision]
    strange = types & {*_TYPES.values()} - {wanted, "FLOAT"}
    if settings.precision == "int8":
        strange -= {"HALF", "BF16"}  # what is not quantised may be in half precision
    if wanted not in types or strange:
        raise MeasurementError(
            f"{model.name} computes in {', '.join(sorted(types))}, which is not {settings.precision}: TensorRT "
            "takes precision from the file; write the file in that precision"
        )


def _configure(config: Any, settings: Settings) -> None:
    flags = trt.BuilderFlag
    config.builder_optimization_level = settings.level
    # The detailed texts name the ONNX nodes that a kernel was made of.
    verbosity = trt.ProfilingVerbosity
    config.profiling_verbosity = verbosity.DETAILED if settings.detailed else verbosity.LAYER_NAMES_ONLY
    if not settings.tf32:
        config.clear_flag(flags.TF32)
    if settings.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if MAJOR < 10 and settings.precision in ("fp16", "int8"):
        config.set_flag(flags.FP16)  # in int8 as well: what is not quantised is in fp16
    if MAJOR < 10 and settings.precision == "int8":
        config.set_flag(flags.INT8)


def _shape(model: Path, builder: Any, network: Any, config: Any, settings: Settings) -> None:
    """A profile for a dynamic batch; a batch that is fixed must be the one that was asked for."""
    profile = None
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if any(extent < 0 for extent in shape[1:]):
            raise MeasurementError(f"input {tensor.name} of {model.name} is {shape}: only the batch may be dynamic")
        if shape[0] < 0:
            profile = profile or builder.create_optimization_profile()
            profile.set_shape(tensor.name, *((batch, *shape[1:]) for batch in settings.batches))
        elif settings.batches != (shape[0],) * 3:
            raise MeasurementError(
                f"input {tensor.name} of {model.name} has batch {shape[0]}, the target has {settings.batches[1]}"
            )
    if profile is not None:
        config.add_optimization_profile(profile)
