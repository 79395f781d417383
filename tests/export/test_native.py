"""Files of a target's own format: written whole or not at all, and checked on the device against the module."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas.errors import ExportError
from hwnas.export import native
from hwnas.export.native import is_native, native_name, verify_native, write_native
from hwprof.client import AgentClient, Output
from hwprof.devices import make_device
from hwprof.target import Target

SHAPE = (3, 8, 8)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()


def test_which_targets_need_a_file_of_their_own() -> None:
    assert not is_native(Target())
    assert not is_native(Target(runtime="tensorrt"))
    assert not is_native(Target(runtime="an app"))
    assert native_name("net", Target(runtime="litert")) == "net.tflite"
    for target, name in (
        (Target(precision="int8"), "net.int8.onnx"),
        (Target(runtime="tensorrt", precision="fp16"), "net.fp16.onnx"),
        (Target(runtime="ncnn"), "net.ncnn.param"),
        (Target(runtime="torch", precision="bf16"), "net.bf16.torch.zip"),
    ):
        assert is_native(target)
        assert native_name("net", target) == name


@pytest.mark.parametrize(
    "target", [Target(precision="int8", batch=2), Target(precision="fp16"), Target(runtime="torch")]
)
def test_a_file_computes_on_the_device_what_its_module_computes(tmp_path: Path, target: Target) -> None:
    module, images = network(), torch.randn(30, *SHAPE)
    labels = module(images).argmax(1)
    file = tmp_path / native_name("net", target)
    write_native(module, SHAPE, target, images, file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    with AgentClient(make_device("local"), target) as client:
        verified = verify_native(client, file, module, target, images.__getitem__, labels)
        assert verified.images == 30
        assert verified.accuracy > 90
        assert 0 <= verified.max_difference < 0.1
        if target.precision != "int8":
            with pytest.raises(ExportError, match=rf"{file.name} differs from its network by .* on local"):
                verify_native(client, file, network(1), target, images.__getitem__, labels)


class Answers:
    """A client whose device computes what the test says."""

    def __init__(self, *outputs: np.ndarray[Any, Any]) -> None:
        self.outputs, self.seen = outputs, 0

    def patiently(self, job: Callable[[], list[Output]]) -> list[Output]:
        return job()

    def infer(self, model: Path, inputs: list[Path]) -> list[Output]:
        (path,) = inputs
        self.seen += len(np.load(path))
        return [Output(array.shape, array.astype("<f4").tobytes()) for array in self.outputs]


def verify(client: Answers, images: Tensor, target: Target = Target()) -> None:  # noqa: B008
    verify_native(client, Path("net.tflite"), network(), target, images.__getitem__, torch.zeros(len(images)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([np.zeros((4, 9))], r"logits of shape \(4, 9\).*the network \(4, 4\)"),
        ([np.full((4, 4), np.nan)], "finite: False"),
        ([np.zeros((4, 4))] * 2, "gives 2 outputs"),
        ([np.full((4, 4), 9.0)], "differs from its network by"),
    ],
)
def test_wrong_outputs_of_a_device_are_told(outputs: list[np.ndarray[Any, Any]], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        verify(Answers(*outputs), torch.randn(4, *SHAPE))


def test_only_whole_batches_travel_and_no_more_than_a_device_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_each = 4 * 3 * 8 * 8
    monkeypatch.setattr(native, "ALL_BYTES", 9 * bytes_each)
    monkeypatch.setattr(native, "CHUNK_BYTES", 4 * bytes_each)
    monkeypatch.setattr("hwnas.export.verify.TOLERANCE", {})
    client = Answers(np.zeros((3, 4)))
    images = torch.randn(20, *SHAPE)
    found = verify_native(client, Path("net"), network(), Target(batch=3), images.__getitem__, torch.zeros(20))  # type: ignore[arg-type]
    assert (found.images, client.seen) == (9, 9)
    with pytest.raises(ExportError, match="no whole batch of 32 images"):
        verify(client, images, Target(batch=32))


def test_a_full_disk_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(precision="fp16")
    file = tmp_path / native_name("net", target)
    write_native(network(), SHAPE, target, torch.randn(2, *SHAPE), file)
    before = file.read_bytes()

    def full(graph: Any, target: Target, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(native, "write_graph", full)
    with pytest.raises(OSError, match="No space left"):
        write_native(network(1), SHAPE, target, torch.randn(2, *SHAPE), file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
