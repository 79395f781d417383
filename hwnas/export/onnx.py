"""ONNX files: written by torch.onnx with a dynamic batch, checked, and given metadata that a stranger can read."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch
from torch import nn

from hwnas.errors import ExportError
from hwprof.errors import MeasurementError
from hwprof.files import write_atomic
from hwprof.runtimes.onnx_file import read_onnx

INPUT, OUTPUT = "images", "logits"


def export_onnx(module: nn.Module, input_shape: tuple[int, int, int]) -> onnx.ModelProto:
    """The module in evaluation mode as a checked ONNX model: images (batch, *input_shape) float -> logits.

    Raises ExportError if the exporter or the checker refuses it.
    """
    # Two images: with one the exporter would take the batch for a constant.
    example = torch.zeros(2, *input_shape)
    was_training = module.training
    module.eval()
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
        if program is None:
            raise ExportError(
                "torch.onnx.export returned no program; check the installed versions of torch and onnxscript"
            )
        model: onnx.ModelProto = program.model_proto
        _forget_origin(model)
        onnx.checker.check_model(model, full_check=True)
    except ExportError:
        raise
    except Exception as error:  # the exporter and the checker raise many unrelated types
        raise ExportError(f"the network cannot be exported to ONNX: {type(error).__name__}: {error}") from error
    finally:
        module.train(was_training)
    return model


def write_onnx(model: onnx.ModelProto, metadata: Mapping[str, str], path: Path) -> None:
    """Write the model with `metadata` as its metadata properties: the whole file or none."""
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    onnx.helper.set_model_props(stamped, dict(metadata))
    write_atomic(path, stamped.SerializeToString())


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata properties of an ONNX file. Raises ExportError if it is not one."""
    try:
        model = read_onnx(path)
    except MeasurementError as error:
        raise ExportError(f"{path} is not a readable ONNX file: {error}") from error
    return {entry.key: entry.value for entry in model.metadata_props}


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: source lines and folders of the machine that exported, larger than small graphs."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for entry in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress lines and its internal deprecations from the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
