"""Exported ONNX files: dynamic batch, metadata, no trace of the exporting machine, and checks that can fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from hwnas.errors import ExportError
from hwnas.export.card import metadata_of, write_card
from hwnas.export.onnx import export_onnx, read_metadata, write_onnx
from hwnas.export.verify import verify_onnx


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


@pytest.fixture(scope="module")
def exported() -> tuple[nn.Module, onnx.ModelProto]:
    module = network()
    return module, export_onnx(module, (1, 8, 8))


def batches(sizes: tuple[int, ...]):
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        yield torch.randn(size, 1, 8, 8, generator=generator), torch.zeros(size, dtype=torch.int64)


def test_the_file_takes_any_batch_and_agrees_with_the_network(exported, tmp_path: Path) -> None:
    module, model = exported
    path = tmp_path / "a.onnx"
    write_onnx(model, {"hwnas.name": "a"}, path)
    found = verify_onnx(path, module, batches((1, 2, 7)))
    assert found.images == 10
    assert found.max_difference < 1e-5
    images, _ = next(iter(batches((5,))))
    logits = ort.InferenceSession(path).run(None, {"images": images.numpy()})[0]
    assert logits.shape == (5, 3)
    assert read_metadata(path) == {"hwnas.name": "a"}


def test_accuracy_is_that_of_the_file(exported, tmp_path: Path) -> None:
    module, model = exported
    path = tmp_path / "a.onnx"
    write_onnx(model, {}, path)
    images, _ = next(iter(batches((50,))))
    with torch.no_grad():
        labels = module.eval()(images).argmax(dim=1)
    labels[:10] = (labels[:10] + 1) % 3
    assert verify_onnx(path, module, [(images, labels)]).accuracy == pytest.approx(80.0)


def test_a_file_that_computes_something_else_is_refused(exported, tmp_path: Path) -> None:
    module, model = exported
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weight = next(entry for entry in changed.graph.initializer if len(entry.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    write_onnx(changed, {}, tmp_path / "changed.onnx")
    with pytest.raises(ExportError, match=r"changed\.onnx differs from its network by"):
        verify_onnx(tmp_path / "changed.onnx", module, batches((4,)))
    with pytest.raises(ExportError, match="no image"):
        verify_onnx(tmp_path / "changed.onnx", module, [])


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"x\.onnx cannot be loaded"):
        verify_onnx(tmp_path / "x.onnx", network(), batches((1,)))
    with pytest.raises(ExportError, match=r"x\.onnx is not a readable ONNX file"):
        read_metadata(tmp_path / "x.onnx")


def test_nothing_of_the_exporting_machine_is_in_the_file(exported) -> None:
    _, model = exported
    text = model.SerializeToString()
    assert str(Path(__file__).parent).encode() not in text
    assert b".py" not in text


def test_the_network_keeps_its_mode_and_a_network_that_cannot_be_exported_is_an_error() -> None:
    class Impossible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight if x.sum() > 0 else x

    module = Impossible().train()
    with pytest.raises(ExportError, match="cannot be exported to ONNX"):
        export_onnx(module, (1, 4, 4))
    assert module.training


def test_cards_hold_the_files_digest_and_refuse_nan(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"abc")
    path = write_card({"name": "a", "measured_ms": None}, file)
    card = json.loads(path.read_text())
    assert card["size_bytes"] == 3
    assert card["sha256"].startswith("ba7816bf")
    assert metadata_of({"a": "text", "b": [1, 2]}) == {"hwnas.a": "text", "hwnas.b": "[1, 2]"}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_card({"a": float("nan")}, file)
