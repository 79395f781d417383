"""ExecuTorch: one .pte file, made by ExecuTorch for its XNNPACK backend, fp32, for up to 8 images at once.

Metadata is a method "hwnas" beside "forward", which gives it as JSON.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from hwnas.errors import ExportError
from hwnas.export.exporter import Array, ExportSpec, Infer, needs, require_precision

_PACKAGES = "executorch"


class PteExporter:
    """Writes .pte; checked in ExecuTorch's Python runtime."""

    name = "pte"
    suffixes = (".pte",)
    precisions = ("fp32",)
    largest_batch = 8  # from 16 on, torch may choose other convolutions, and says "below 16" of the program for that
    layout = "nchw"

    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        from hwnas.export.graph import program_of

        require_precision(self, spec.precision)
        with needs("a .pte file", _PACKAGES), _without_warnings():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        program = program_of(module, spec, self.largest_batch)
        try:
            with _without_warnings():
                edge = to_edge_transform_and_lower(
                    program,
                    partitioner=[XnnpackPartitioner()],
                    constant_methods={"hwnas": json.dumps(dict(spec.metadata))},
                )
                data = edge.to_executorch().buffer
        except Exception as error:  # its passes raise many unrelated types
            raise ExportError(f"ExecuTorch cannot take the network: {type(error).__name__}: {error}") from error
        path.write_bytes(data)

    def load(self, path: Path, precision: str) -> Infer:
        program = _program(path)
        try:
            forward = program.load_method("forward")
        except RuntimeError as error:
            raise ExportError(f"{path.name} cannot be loaded: {error}") from error

        def infer(images: Array) -> Array:
            try:
                (logits,) = forward.execute([torch.from_numpy(images).contiguous()])
            except RuntimeError as error:
                raise ExportError(f"{path.name} cannot be run: {error}") from error
            return cast(Array, logits.numpy().copy())

        return infer

    def read_metadata(self, path: Path) -> dict[str, str]:
        (text,) = _program(path).load_method("hwnas").execute([])
        return dict(json.loads(text))


def _program(path: Path) -> Any:
    with needs(f"{path.name}, to be run,", _PACKAGES), _without_warnings():
        from executorch.runtime import Runtime
    try:
        return Runtime.get().load_program(path)
    except (RuntimeError, OSError) as error:
        raise ExportError(f"{path.name} cannot be loaded: {error}") from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep the package's deprecations, which are between it and torch, from the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
