"""Training and scores on a GPU, as far as it can be seen without one, and on one where there is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hwnas.errors import RecipeError
from hwnas.sections import TrainSection
from hwnas.train import batches, loop
from hwnas.train.data import ImageData, load_data
from hwnas.train.device import TrainDevice, training_device
from hwnas.train.isolation import repeatable_kernels
from hwnas.train.loop import TrainConfig, evaluate, train


def test_auto_is_the_gpu_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    for sees, auto in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda sees=sees: sees)
        assert training_device("auto") == torch.device(auto)
        assert training_device("cpu") == torch.device("cpu")
    with pytest.raises(RecipeError, match=r'train\.device = "cuda": torch .* here; .* device = "auto"'):
        training_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_device("cuda") == torch.device("cuda")


def test_recipes_know_these_devices() -> None:
    assert get_args(TrainSection.model_fields["device"].annotation) == get_args(TrainDevice)
    assert TrainSection().device == "auto"


def test_only_on_a_gpu_are_kernels_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    for device, during in (("cpu", (False, True)), ("cuda", (True, False))):
        with contextlib.suppress(KeyError), repeatable_kernels(torch.device(device)):
            assert (cudnn.deterministic, cudnn.benchmark) == during
            raise KeyError
        assert (cudnn.deterministic, cudnn.benchmark) == (False, True)


@pytest.fixture(scope="module")
def few() -> ImageData:
    digits = load_data("digits")
    parts = {f"{a}_{s}": getattr(digits, f"{a}_{s}")[:40] for a in "xy" for s in ("train", "valid", "test")}
    return dataclasses.replace(digits, **parts)


def _net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 1, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, 10),
    )


@pytest.fixture
def imagined_gpu(few: ImageData, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors without numbers that know where they would be; an operator of tensors on two devices is an error."""
    assert len(few.mean) == len(few.std) == 1  # computed, and kept, from real pixels
    for name, value in {"__float__": 1.0, "__int__": 1, "__bool__": True}.items():
        monkeypatch.setattr(Tensor, name, lambda self, value=value: value)
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)  # they are made there
    monkeypatch.setattr(loop, "own_random_state", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(batches, "seed_modules", lambda seed, device: None)
    monkeypatch.setattr(loop, "mixed_precision", lambda device: False)
    # no gradients and no fused step without numbers
    build = loop.build_optimizer
    monkeypatch.setattr(loop, "build_optimizer", lambda *given: build(*given[:-1], torch.device("meta")))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.mark.parametrize("resized_at_once", [True, False])
@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_tensor_of_a_training_is_on_its_device(
    few: ImageData,
    imagined_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    optimizer: Any,
    resized_at_once: bool,
) -> None:
    if not resized_at_once:
        monkeypatch.setattr(batches, "RESIZED_BYTES", 0)
    with torch.device("cuda"):
        net = _net()
    seen: set[str] = set()

    def backward(loss: Tensor) -> None:
        seen.add(loss.device.type)
        for weight in net.parameters():
            weight.grad = torch.zeros_like(weight)

    monkeypatch.setattr(Tensor, "backward", backward)
    config = TrainConfig(epochs=2, batch_size=20, augment="crop_flip", optimizer=optimizer)
    assert train(net, few, size, config, device="cuda").epochs == 2
    assert seen == {weight.device.type for weight in net.parameters()} == {"cuda"}
    with pytest.raises(RuntimeError, match="device"):
        net(few.x_train[:2].float())  # the imagined GPU does notice


def _keep(calls: list[tuple[Any, ...]], *call: Any) -> None:
    calls.append(call)


@pytest.mark.gpu
def test_a_checkpoint_goes_on_on_another_device(few: ImageData, tmp_path: Path) -> None:
    config = TrainConfig(epochs=4, batch_size=20)

    def stop(epoch: int, *_: Any) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        path = tmp_path / first
        with pytest.raises(KeyboardInterrupt):
            train(_net(), few, 8, config, device=first, checkpoint=path, progress=stop)
        module = _net()
        calls: list[tuple[Any, ...]] = []
        train(module, few, 8, config, device=second, checkpoint=path, progress=partial(_keep, calls))
        assert [epoch for epoch, *_ in calls] == [3, 4]
        assert next(module.parameters()).device.type == second


@pytest.mark.gpu
def test_accuracy_hardly_depends_on_the_device() -> None:
    digits = load_data("digits")
    accuracies = []
    for device in ("cpu", "cuda"):
        module = _net()
        accuracies.append(train(module, digits, 8, TrainConfig(epochs=8), device=device).test_accuracy)
        found = evaluate(module.cpu(), digits.x_test, digits.y_test, digits.mean, digits.std, 8)
        assert found == pytest.approx(accuracies[-1], abs=0.6)
    assert accuracies[0] == pytest.approx(accuracies[1], abs=6)
