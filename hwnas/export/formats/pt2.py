"""PyTorch's AOTInductor: one .pt2 file with machine code for the processor of this machine, fp32, any batch.

It runs in torch of the same version on a processor with the same instructions. A C++ compiler makes it, which takes
tens of seconds a network. Metadata is the package's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from hwnas.errors import ExportError
from hwnas.export.exporter import Array, ExportSpec, Infer, require_precision


class Pt2Exporter:
    """Writes .pt2; checked in torch."""

    name = "pt2"
    suffixes = (".pt2",)
    precisions = ("fp32",)
    largest_batch = None
    layout = "nchw"

    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        from torch._inductor import aoti_compile_and_package

        from hwnas.export.graph import program_of

        require_precision(self, spec.precision)
        program = program_of(module, spec, self.largest_batch)
        try:
            aoti_compile_and_package(
                program,
                package_path=str(path),
                inductor_configs={"aot_inductor.metadata": dict(spec.metadata)},
            )
        except Exception as error:  # the compiler and its driver raise many unrelated types
            raise ExportError(
                f"AOTInductor, which needs a C++ compiler, cannot compile the network: {type(error).__name__}: {error}"
            ) from error

    def load(self, path: Path, precision: str) -> Infer:
        package = _package(path)

        def infer(images: Array) -> Array:
            try:
                with torch.inference_mode():
                    return cast(Array, package(torch.from_numpy(images)).numpy())
            except RuntimeError as error:
                raise ExportError(f"{path.name} cannot be run: {error}") from error

        return infer

    def read_metadata(self, path: Path) -> dict[str, str]:
        facts = _package(path).loader.get_metadata()
        return {key: value for key, value in facts.items() if key.startswith("hwnas.")}


def _package(path: Path) -> Any:
    from torch._inductor import aoti_load_package

    try:
        return aoti_load_package(str(path))
    except Exception as error:  # it raises many unrelated types
        raise ExportError(f"{path.name} cannot be loaded: {type(error).__name__}: {error}") from error
