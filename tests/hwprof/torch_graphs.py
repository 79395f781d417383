"""Graph files for torch in tests, and ways to damage them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hwprof.runtimes.torch_file import GraphFile, Step, write_graph_file

CONV = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}


def small_graph(batch: int = 1) -> GraphFile:
    """A convolution whose output is added to what its own activation gives, pooled."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    steps = (
        Step("conv", "b0:y", ("x",), {"weight": weight, "bias": np.ones(4, np.float32)}, CONV),
        Step("hardswish", "b0:a", ("b0:y",), {}, {}),
        Step("add", "b1:s", ("b0:y", "b0:a"), {}, {}),
        Step("global_avg_pool", "b1:p", ("b1:s",), {}, {}),
        Step("flatten", "b1:f", ("b1:p",), {}, {}),
    )
    maps = dict.fromkeys(("b0:y", "b0:a", "b1:s"), (batch, 4, 6, 6))
    shapes = {"x": (batch, 3, 6, 6), **maps, "b1:p": (batch, 4, 1, 1), "b1:f": (batch, 4)}
    return GraphFile(("x",), "b1:f", shapes, steps)


def write_small(path: Path, batch: int = 1) -> Path:
    write_graph_file(small_graph(batch), path)
    return path


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("graph.json")), archive.read("weights.bin")


def rebuilt(path: Path, *, text: Any = None, weights: bytes | None = None, **options: Any) -> None:
    """Write the file again with another text or other weights; the zip itself is sound."""
    old_text, old_weights = parts(path)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", **options) as archive:
        archive.writestr("graph.json", json.dumps(old_text if text is None else text))
        archive.writestr("weights.bin", old_weights if weights is None else weights)
    path.write_bytes(content.getvalue())


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the text of a file in place."""
    text, _ = parts(path)
    edit(text)
    rebuilt(path, text=text)
