"""Networks shipped as TensorRT engines: on the stand-in for TensorRT, whose engines ONNX Runtime computes."""

from __future__ import annotations

import ctypes
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch._dynamo  # which looks for tensorrt when it is first imported, and must not find the stand-in
from fake_gpu import FakeTensorRt, install_tensorrt
from torch import nn

from hwnas.errors import ExportError
from hwnas.export.exporter import ExportSpec, make_exporter
from hwnas.export.ship import check_here, ship
from hwprof.errors import AcceleratorError

SHAPE = (1, 6, 6)
CARD = {
    "name": "net",
    "classes": ["cat", "dog", "bird"],
    "input": {"normalise": "outside", "mean": [0.5], "std": [0.2]},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers).eval()


@pytest.fixture(params=["10.16.1.11", "11.4.0.106"])
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return install_tensorrt(request.param, tmp_path, monkeypatch)


def shipped(folder: Path, precision: str, batch: int = 1) -> dict[str, Any]:
    images = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(1))
    module, exporter = network(), make_exporter("tensorrt")
    spec = ExportSpec(SHAPE, precision, batch, images)

    def check(path: Path) -> Any:
        labels = torch.zeros(len(images), dtype=torch.int64)
        return check_here(exporter, module, precision, {"test": (images.__getitem__, labels)}, path)

    return ship(exporter, module, spec, folder, "net", CARD, check)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_is_shipped_with_its_cache_its_layers_and_its_onnx(
    fake: FakeTensorRt, tmp_path: Path, precision: str
) -> None:
    card = shipped(tmp_path / "export", precision, batch=4)
    engine = Path(card["path"])
    stem = engine.name.removesuffix(".engine")
    assert {path.name for path in engine.parent.iterdir()} == {
        *(stem + suffix for suffix in (".engine", ".onnx", ".timing", ".layers.json")),
        f"{stem}.engine.json",
        "run.py",
    }
    assert card["checked_images"] == {"test": 40}
    assert any(
        event.startswith("profile images (1, 1, 6, 6) (4, 1, 6, 6) (32, 1, 6, 6)") for event in fake.recorder.events
    )
    source = onnx.load(engine.with_suffix(".onnx"))
    assert ("QuantizeLinear" in {node.op_type for node in source.graph.node}) == (precision == "int8")
    assert make_exporter("tensorrt").read_metadata(engine)["hwnas.precision"] == precision
    assert len(json.loads(engine.with_suffix(".layers.json").read_text())["Layers"]) > 3
    assert len(engine.with_suffix(".timing").read_text().split()) > 3


def test_what_tensorrt_cannot_build_or_take_is_an_error(fake: FakeTensorRt, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="batches must be 1 <= min <= opt <= max"):
        shipped(tmp_path, "fp32", batch=33)
    fake.recorder.broken.add("build")
    with pytest.raises(ExportError, match=r"TensorRT cannot build net\.engine: .*no implementation for node"):
        shipped(tmp_path, "fp32")
    assert not (tmp_path / "tensorrt" / "net").exists()


def test_without_a_gpu_nothing_is_written(fake: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NO_GPU", "1")
    with pytest.raises(AcceleratorError, match="no GPU"):
        shipped(tmp_path / "export", "fp32")
    assert list((tmp_path / "export" / "tensorrt").iterdir()) == []


def cuda_runtime() -> ModuleType:
    """A stand-in for cuda.bindings.runtime, whose GPU is the memory of this process."""
    module, kept = ModuleType("cuda.bindings.runtime"), []

    def allocate(size: int) -> tuple[int, int]:
        kept.append(ctypes.create_string_buffer(size))
        return 0, ctypes.addressof(kept[-1])

    module.cudaMalloc = allocate  # type: ignore[attr-defined]
    module.cudaMemcpy = lambda to, source, size, kind: (ctypes.memmove(to, source, size), 0)[1:]  # type: ignore[attr-defined]
    module.cudaMemcpyKind = int  # type: ignore[attr-defined]
    module.cudaStreamCreate = lambda: (0, 1)  # type: ignore[attr-defined]
    module.cudaDeviceSynchronize = lambda: (0,)  # type: ignore[attr-defined]
    return module


def test_the_example_says_what_the_network_says(
    fake: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Path(shipped(tmp_path / "export", "fp32")["path"])
    pixels = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    names = ("cuda", "cuda.bindings", "cuda.bindings.runtime")
    modules = [ModuleType("cuda"), ModuleType("cuda.bindings"), cuda_runtime()]
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    modules[1].runtime = modules[2]  # type: ignore[attr-defined]
    tensorrt = sys.modules["tensorrt"]
    monkeypatch.setattr(tensorrt, "Logger", tensorrt.ILogger, raising=False)
    monkeypatch.setattr(sys, "argv", ["run.py", str(engine), str(tmp_path / "images.npy")])
    runpy.run_path(str(engine.parent / "run.py"), run_name="__main__")
    with torch.no_grad():
        labels = network()((torch.from_numpy(pixels) / 255 - 0.5) / 0.2).argmax(dim=1)
    assert capsys.readouterr().out.split() == [CARD["classes"][label] for label in labels]
