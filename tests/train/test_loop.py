from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwnas.errors import DataError, HwnasError, RecipeError
from hwnas.train import batches, loop
from hwnas.train.data import ImageData, load_data
from hwnas.train.loop import TrainConfig, TrainingFailed, TrainResult, evaluate, train


def _net(classes: int = 10, width: int = 8, channels: int = 1, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width, classes),
    )


@pytest.fixture(autouse=True)
def _on_the_accelerator(accelerator: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training of this file happens where --accelerator says."""
    monkeypatch.setitem(globals(), "train", partial(loop.train, device=accelerator))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture(scope="module")
def few(digits: ImageData) -> ImageData:
    """97 training images: batches of 16 are not of one size."""
    parts = {f"{a}_{s}": getattr(digits, f"{a}_{s}")[:n] for a in "xy" for s, n in (("train", 97), ("valid", 40))}
    return dataclasses.replace(digits, **parts)


_SHORT = TrainConfig(epochs=4, batch_size=16)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu().clone() for name, value in module.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _trained(data: ImageData, config: TrainConfig = _SHORT, **options: Any) -> tuple[dict[str, Tensor], TrainResult]:
    module = _net(dropout=0.2)
    result = train(module, data, 8, config, **options)
    return _weights(module), result


def test_a_small_network_learns_digits(digits: ImageData) -> None:
    module = _net(width=16)
    result = train(module, digits, 8, TrainConfig(epochs=15))
    assert result.test_accuracy > 90
    assert result.valid_accuracy > 85  # 143 images
    assert result.epochs == 15
    assert result.seconds > 0
    assert evaluate(module, digits.x_test, digits.y_test, digits.mean, digits.std, 8) == result.test_accuracy


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw"},
        {"augment": "crop_flip"},
        {"augment": "none"},
        {"augment": "randaugment", "ema": 0.95},
        {"mix": "mixup"},
    ],
)
def test_every_way_to_train_learns(digits: ImageData, changes: dict[str, Any]) -> None:
    _, result = _trained(digits, TrainConfig(epochs=8, batch_size=32, **changes))
    assert result.test_accuracy > 60  # chance is 10


def test_the_seed_decides_everything(few: ImageData) -> None:
    first, result = _trained(few)
    torch.manual_seed(99)  # what the caller's generator holds does not matter
    torch.rand(3)
    again, repeated = _trained(few)
    other, _ = _trained(few, dataclasses.replace(_SHORT, seed=1))
    assert _same(first, again)
    assert dataclasses.replace(result, seconds=0) == dataclasses.replace(repeated, seconds=0)
    assert not _same(first, other)


def test_every_epoch_sees_every_image_once_in_another_order(few: ImageData) -> None:
    seen: list[bytes] = []
    module = _net()
    module.register_forward_hook(
        lambda net, inputs, _: seen.extend(x.cpu().numpy().tobytes() for x in inputs[0]) if net.training else None
    )
    train(module, few, 8, dataclasses.replace(_SHORT, epochs=2, augment="none"))
    first, second = seen[:97], seen[97:]
    assert len(set(first)) == 97
    assert sorted(first) == sorted(second)
    assert first != second


def test_the_callers_state_is_left_as_found(few: ImageData) -> None:
    module = _net(dropout=0.2).eval()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    seen: list[int] = []
    train(module, few, 8, _SHORT, max_threads=1, progress=lambda *_: seen.append(torch.get_num_threads()))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert set(seen) == {1}
    evaluate(module.train(), few.x_test, few.y_test, few.mean, few.std, 8)
    assert module.training


def _stop_after(epochs: int) -> Callable[[int, int, dict[str, float]], None]:
    def stop(epoch: int, planned: int, metrics: dict[str, float]) -> None:
        if epoch == epochs:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize(
    "how",
    [{"optimizer": "sgd"}, {"optimizer": "adamw"}, {"ema": 0.9, "augment": "trivialaugment", "mix": "mixup_cutmix"}],
)
@pytest.mark.parametrize("epochs", [1, 3, 4])
def test_a_killed_training_ends_with_the_weights_of_one_never_stopped(
    few: ImageData, tmp_path: Path, epochs: int, how: dict[str, Any]
) -> None:
    config = dataclasses.replace(_SHORT, **how)
    expected, result = _trained(few, config)
    with pytest.raises(KeyboardInterrupt):
        _trained(few, config, checkpoint=tmp_path / "trial.pt", progress=_stop_after(epochs))
    rest: list[int] = []
    resumed, found = _trained(
        few, config, checkpoint=tmp_path / "trial.pt", progress=lambda epoch, *_: rest.append(epoch)
    )
    assert rest == list(range(epochs, 5))  # the last one is told again
    assert _same(resumed, expected)
    assert dataclasses.replace(found, seconds=0) == dataclasses.replace(result, seconds=0)


@pytest.mark.parametrize("why", ["config", "data", "network", "damaged"])
def test_a_checkpoint_of_something_else_is_not_used(
    few: ImageData, tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    path = tmp_path / "trial.pt"
    if why == "network":
        train(_net(width=4), few, 8, _SHORT, checkpoint=path)
    else:
        data = dataclasses.replace(few, x_train=255 - few.x_train) if why == "data" else few
        _trained(data, dataclasses.replace(_SHORT, seed=why == "config"), checkpoint=path)
    if why == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    expected, _ = _trained(few)
    with caplog.at_level(logging.WARNING):
        found, _ = _trained(few, checkpoint=path)
    assert "starts anew" in caplog.text
    assert _same(found, expected)


def test_progress_tells_every_epoch(few: ImageData) -> None:
    calls: list[tuple[int, int, dict[str, float]]] = []
    _, result = _trained(few, progress=lambda *call: calls.append(call))
    assert [(epoch, planned) for epoch, planned, _ in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    names = {"train_loss", "valid_accuracy", "learning_rate", "images_per_second", "seconds", "seconds_left"}
    assert all(metrics.keys() == names for *_, metrics in calls)
    assert calls[-1][2]["valid_accuracy"] == result.valid_accuracy
    assert calls[-1][2]["train_loss"] == result.train_loss < calls[0][2]["train_loss"]


def test_speed_and_time_left_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch, few: ImageData) -> None:
    monkeypatch.setattr(loop, "time", _Clock())  # an epoch takes a second, half of it for the scoring
    told: list[dict[str, float]] = []
    _trained(few, progress=lambda epoch, planned, facts: told.append(facts))
    assert [facts["images_per_second"] for facts in told] == [97 / 0.5] * 4
    assert [facts["seconds"] for facts in told] == [1, 2, 3, 4]
    assert [facts["seconds_left"] for facts in told] == [3, 2, 1, 0]


def test_a_log_has_every_epoch_once_though_the_training_was_killed(few: ImageData, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason='needs TensorBoard: pip install "hwnas[test]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options: dict[str, Any] = {"checkpoint": tmp_path / "trial.pt", "log_dir": tmp_path / "log"}
    with pytest.raises(KeyboardInterrupt):
        _trained(few, progress=_stop_after(2), **options)
    _, result = _trained(few, **options)
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert [event.step for event in events.Scalars("valid_accuracy")] == [1, 2, 3, 4]
    assert events.Scalars("train_loss")[-1].value == pytest.approx(result.train_loss)
    assert set(events.Tags()["scalars"]) >= {"learning_rate", "images_per_second"}


def test_a_diverged_training_says_when(few: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "trial.pt"
    with pytest.raises(
        TrainingFailed, match=r"diverged in epoch 1 of 4: its mean loss is nan .*lower learning_rate"
    ) as caught:
        _trained(few, dataclasses.replace(_SHORT, learning_rate=1e30), checkpoint=path)
    assert isinstance(caught.value, HwnasError)
    assert not path.exists()


def test_weights_that_are_not_finite_are_a_failure_even_if_the_loss_is(few: ImageData) -> None:
    module = _net()
    module.register_buffer("broken", torch.tensor(math.inf))
    with pytest.raises(TrainingFailed, match="epoch 1"):
        train(module, few, 8, _SHORT)


class _Clock:
    """Stands for the module `time`: every question takes half a second, and an epoch asks twice after it began."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.5
        return self.now


def _rates_of(monkeypatch: pytest.MonkeyPatch, few: ImageData, config: TrainConfig) -> tuple[list[float], TrainResult]:
    rates: list[float] = []
    whole = loop._train_epoch

    def spy(*arguments: Any) -> float:
        rates.extend(arguments[-2])
        return whole(*arguments)

    monkeypatch.setattr(loop, "_train_epoch", spy)
    return rates, _trained(few, config)[1]


def test_rates_change_at_every_step(monkeypatch: pytest.MonkeyPatch, few: ImageData) -> None:
    rates, _ = _rates_of(monkeypatch, few, dataclasses.replace(_SHORT, learning_rate=0.1, warmup_epochs=1))
    assert len(rates) == 4 * 7  # 97 images in batches of at most 16
    assert rates[:7] == pytest.approx([0.1 * (step + 0.5) / 7 for step in range(7)])
    assert rates[7:] == sorted(rates[7:], reverse=True)
    assert all(rates[step] != rates[step + 1] for step in range(27))
    assert 0 < rates[-1] < 0.001


def test_a_time_limit_compresses_the_schedule(monkeypatch: pytest.MonkeyPatch, few: ImageData) -> None:
    monkeypatch.setattr(loop, "time", _Clock())  # an epoch takes a second
    config = dataclasses.replace(_SHORT, epochs=100, max_seconds=5.5, learning_rate=0.1, warmup_epochs=0)
    rates, result = _rates_of(monkeypatch, few, config)
    assert result.epochs == 6  # the one that passes the limit is finished
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.002


def test_a_time_limit_shorter_than_an_epoch_trains_one(few: ImageData) -> None:
    started = time.monotonic()
    assert _trained(few, dataclasses.replace(_SHORT, epochs=10**6, max_seconds=1e-6))[1].epochs == 1
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("n", "batch_size", "expected"),
    [(64, 64, [64]), (65, 64, [33, 32]), (3, 2, [3]), (129, 64, [43, 43, 43]), (5, 2, [3, 2]), (2, 64, [2])],
)
def test_no_batch_has_one_image(n: int, batch_size: int, expected: list[int]) -> None:
    parts = torch.arange(n).tensor_split(batches.batch_count(n, batch_size))
    assert [len(part) for part in parts] == expected


def test_batch_normalisation_of_one_pixel_maps_survives_an_odd_image(few: ImageData) -> None:
    data = dataclasses.replace(few, x_train=few.x_train[:17], y_train=torch.arange(17) % 10)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    assert train(module, data, 8, TrainConfig(epochs=1, batch_size=16)).epochs == 1


def test_data_too_large_to_be_resized_at_once_trains_the_same(few: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights() -> dict[str, Tensor]:
        module = _net()
        train(module, few, 12, TrainConfig(epochs=1))
        return _weights(module)

    at_once = weights()
    monkeypatch.setattr(batches, "RESIZED_BYTES", 0)
    assert _same(weights(), at_once)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (_net(classes=9), r"into shape \(2, 9\), expected \(2, 10\): build it with num_classes=10"),
        (_net(classes=11), "build it with num_classes=10"),
        (_net(channels=3), r"cannot read a batch of digits, shape \(2, 1, 8, 8\)"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(digits: ImageData, module: nn.Module, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(module, digits, 8, _SHORT)


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"warmup_epochs": -1},
        {"optimizer": "lion"},
        {"augment": "flip"},
        {"mix": "blend"},
        {"ema": 1.0},
        {"ema": -0.1},
        {"max_seconds": 0.0},
        {"seed": -1},
    ],
)
def test_unusable_settings_are_refused(setting: dict[str, Any]) -> None:
    name, value = next(iter(setting.items()))
    with pytest.raises(RecipeError, match=f"training setting {name} must be .* got {value!r}"):
        TrainConfig(**setting)
