from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from hwnas.train.average import WeightAverage
from hwnas.train.checkpoint import load_checkpoint, save_checkpoint
from hwnas.train.data import load_data
from hwnas.train.loop import TrainConfig, TrainResult, train


def _net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def _change(module: nn.Module, step: int) -> None:
    """Other weights and statistics, as after a step."""
    with torch.no_grad():
        for value in module.state_dict().values():
            value.add_(step)


def test_the_average_follows_its_formula() -> None:
    module = _net()
    average, expected = WeightAverage(module, 0.5), copy.deepcopy(module.state_dict())
    for step in range(1, 15):
        _change(module, step)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    last = copy.deepcopy(module.state_dict())
    with average.installed():
        within = copy.deepcopy(module.state_dict())
    assert decay == 0.5  # the warm-up is over: both its sides were seen
    for name, value in module.state_dict().items():
        assert torch.equal(value, last[name])
        if value.is_floating_point():
            assert torch.allclose(within[name], expected[name], rtol=1e-5)
            assert not torch.allclose(within[name], last[name])
        else:
            assert within[name] == last[name]
    average.install()
    assert all(torch.equal(value, within[name]) for name, value in module.state_dict().items())


def test_an_average_goes_on_from_its_state(tmp_path: Path) -> None:
    whole, parts = _net(), _net()
    one, first = WeightAverage(whole, 0.9), WeightAverage(parts, 0.9)
    for step in (1, 2):
        _change(whole, step)
        one.update()
    _change(parts, 1)
    first.update()
    save_checkpoint(tmp_path / "average", "", first.state())
    second = WeightAverage(parts, 0.9)
    second.restore(load_checkpoint(tmp_path / "average", "") or {})
    _change(parts, 2)
    second.update()
    one.install()
    second.install()
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


def test_what_a_training_scores_and_returns_is_the_average() -> None:
    digits = load_data("digits")
    few = {f"{axis}_{part}": getattr(digits, f"{axis}_{part}")[:60] for axis in "xy" for part in ("valid", "test")}
    data = dataclasses.replace(digits, **few)

    def trained(ema: float) -> tuple[list[Tensor], TrainResult]:
        """The first layer's weights whenever they were scored, and at last those returned."""
        module, scored = _net(), []
        module.register_forward_pre_hook(
            lambda net, inputs: None if net.training else scored.append(net[1].weight.detach().clone())
        )
        result = train(module, data, 8, TrainConfig(epochs=2, augment="none", ema=ema))
        return [*scored, module[1].weight.detach()], result

    last, expected = trained(0.0)
    averaged, result = trained(0.98)
    assert result.train_loss == expected.train_loss  # the steps are the same
    assert len(last) == len(averaged) == 5  # scored: does it fit, two epochs, the test images; and returned
    assert torch.equal(averaged[0], last[0])
    assert not torch.equal(averaged[1], last[1])
    assert not torch.equal(averaged[2], last[2])
    for weight in averaged[3:]:
        assert torch.equal(weight, averaged[2])
