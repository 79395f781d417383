"""The search: targets kept, seeds, a front from one warm-up, and killed searches that go on bit by bit the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.errors import DataError, InfeasibleError, RecipeError
from hwnas.space import IntMatrix
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.supernet.proxyless import Found, ProxylessConfig, search
from hwnas.supernet.relaxations import relax
from hwnas.train.data import ImageData
from hwnas.train.loop import TrainingFailed

SPACE = MobileNetV3Space(
    resolutions=(8,), depths=(1, 2, 3), kernels=(3, 5), expands=(1, 2), stem_width=8, stem_stride=1, stage_widths=(8,),
    stage_strides=(1,), se=(False,), activations=("relu",), head_widths=(8, 8), num_classes=2, in_channels=1,
)  # fmt: skip


def images(n: int = 24) -> ImageData:
    """Bright and dark squares."""
    rng = np.random.default_rng(0)
    y = torch.arange(n) % 2
    x = torch.from_numpy(rng.integers(0, 120, size=(n, 1, 8, 8), dtype=np.uint8)) + 130 * y[:, None, None, None].byte()
    return ImageData("squares", x, y, x[:8], y[:8], x[:8], y[:8], ("dark", "bright"))


def macs(archs: IntMatrix) -> np.ndarray:
    """1 ms for 10,000 multiply-accumulates."""
    return np.array([sum(block.macs for block in SPACE.blocks(tuple(arch))) for arch in archs.tolist()]) / 1e4


def config(**settings: Any) -> ProxylessConfig:
    small = {"warmup_epochs": 1, "epochs": 2, "batch_size": 8, "arch_every": 1}
    return ProxylessConfig(**(small | settings))


def same(first: Found, second: Found) -> bool:
    a, b = first.network.state_dict(), second.network.state_dict()
    return (
        (first.arch, first.history) == (second.arch, second.history)
        and bool((first.probabilities == second.probabilities).all())
        and all(torch.equal(a[name], b[name]) for name in a)
    )


class Killed(Exception):
    """As by a signal."""


@pytest.mark.parametrize(
    ("loss", "others"),
    [
        ("add", {}),
        ("multiply", {"mix": "mixup_cutmix", "ema": 0.9, "augment": "random_resized_crop"}),
        ("reinforce", {}),
    ],
)
def test_targets_are_kept_and_a_killed_search_goes_on_the_same(
    loss: str, others: dict[str, Any], tmp_path: Path
) -> None:
    relaxation, data, settings = relax(SPACE), images(), config(loss=loss, samples=2, **others)
    whole = search(relaxation, data, macs, [5.3, 8.0], settings)
    for found in whole:
        assert 0.95 * found.target_ms <= found.ms <= found.target_ms
        assert found.ms == macs(np.array([found.arch]))[0]
        assert len(found.history) == 2
        assert repr(found.network) == repr(SPACE.build(found.arch))
    told: list[tuple[str, int]] = []

    def kill(stage: str, done: int, total: int) -> None:
        told.append((stage, done))
        raise Killed

    for _ in range(5):  # after every epoch: one of the warm-up, two of each target
        with pytest.raises(Killed):
            search(relaxation, data, macs, [5.3, 8.0], settings, folder=tmp_path, progress=kill)
    assert told == [("warm-up", 1), *[(f"target {t} ms", n) for t in (5.3, 8) for n in (1, 2)]]
    resumed = search(relaxation, data, macs, [5.3, 8.0], settings, folder=tmp_path, progress=kill)
    assert all(same(first, second) for first, second in zip(whole, resumed, strict=True))
    assert not same(whole[0], search(relaxation, data, macs, [5.3], replace(settings, seed=1))[0])


def test_the_network_begins_with_the_average_over_the_weights() -> None:
    relaxation, data = relax(SPACE), images()
    last, average, same_average = (
        search(relaxation, data, macs, [7.0], config(ema=ema, epochs=1))[0] for ema in (0.0, 0.999, 0.999)
    )
    assert (last.choices, last.history) == (average.choices, average.history)
    name = "head.classifier.weight"
    assert not torch.equal(last.network.get_parameter(name), average.network.get_parameter(name))
    assert same(average, same_average)


def test_a_target_alone_is_the_same_as_among_others_and_takes_the_same_warm_up(tmp_path: Path) -> None:
    relaxation, data, told = relax(SPACE), images(), list[str]()
    both = search(relaxation, data, macs, [5.3, 8.0], config(), folder=tmp_path)
    (later,) = search(
        relaxation, data, macs, [7.0], config(epochs=1), folder=tmp_path, progress=lambda stage, *_: told.append(stage)
    )
    assert told == ["target 7 ms"]
    (alone,) = search(relaxation, data, macs, [7.0], config(), folder=tmp_path)
    (fresh,) = search(relaxation, data, macs, [7.0], config())
    assert same(alone, fresh)
    assert later.ms <= 7.0
    assert not same(alone, both[0])


def test_every_phase_has_a_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    search(relax(SPACE), images(), macs, [5.3, 8.0], config(epochs=1), log_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target-5.3-ms", "target-8-ms", "warm-up"]
    assert all(any(path.iterdir()) for path in tmp_path.iterdir())


def test_another_table_is_another_search(tmp_path: Path) -> None:
    relaxation, told = relax(SPACE), list[str]()

    def searched(scale: float) -> None:
        told.clear()
        search(
            relaxation, images(), lambda archs: macs(archs) * scale, [7.0], config(), folder=tmp_path,
            progress=lambda stage, *_: told.append(stage),
        )  # fmt: skip

    searched(1.0)
    assert told == ["warm-up", "target 7 ms", "target 7 ms"]
    searched(1.0)
    assert told == []
    searched(1.1)
    assert told == ["target 7 ms", "target 7 ms"]


def test_pressure_brings_the_expected_latency_to_the_target() -> None:
    relaxation, data = relax(SPACE), images(64)
    uniform = search(relaxation, data, macs, [5.3], config(epochs=1, arch_learning_rate=1e-9))[0].history[-1]
    settings = config(epochs=6, arch_learning_rate=0.1, pressure_rate=0.05)
    (found,) = search(relaxation, data, macs, [5.3], settings)
    assert uniform.expected_ms > 6.5
    assert abs(found.history[-1].expected_ms - 5.3) < 0.45


def test_cells_are_searched_by_the_same_loop_and_by_another_strategy() -> None:
    space = NasBench201Space(num_classes=2, in_channels=1, channels=4, cells=1, resolution=8)
    for strategy in ("binary", "mixture"):
        (found,) = search(
            relax(space), images(), lambda archs: 1.0 + archs.sum(axis=1), [9.0], config(strategy=strategy, epochs=1)
        )
        assert 8.55 <= found.ms <= 9.0
        assert found.network(torch.zeros(2, 1, 8, 8)).shape == (2, 2)
        assert (found.probabilities != 0.2).any()


def test_what_cannot_be_searched_is_said_before_anything_is_trained() -> None:
    relaxation, data, told = relax(SPACE), images(), list[str]()

    def tell(stage: str, done: int, total: int) -> None:
        told.append(stage)

    with pytest.raises(InfeasibleError, match="the fastest takes"):
        search(relaxation, data, macs, [7.0, 0.1], config(), progress=tell)
    with pytest.raises(RecipeError, match="above 0 ms"):
        search(relaxation, data, macs, [], config(), progress=tell)
    wrong = relax(NasBench201Space(num_classes=3, in_channels=1, channels=4, cells=1, resolution=8))
    with pytest.raises(DataError, match="num_classes=2"):
        search(wrong, data, lambda archs: 1.0 + archs.sum(axis=1), [9.0], config(), progress=tell)
    assert told == []
    with pytest.raises(TrainingFailed, match="warm-up: training diverged in epoch 1"):
        search(relaxation, data, macs, [7.0], config(learning_rate=1e30), progress=tell)


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_epochs": -1}, {"epochs": 0}, {"batch_size": 1}, {"strategy": "darts"}, {"loss": "sum"},
        {"pressure": -0.1}, {"pressure_rate": float("inf")}, {"arch_learning_rate": 0.0}, {"arch_every": 0},
        {"samples": 0}, {"learning_rate": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        config(**settings)
