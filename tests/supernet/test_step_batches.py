"""Batches of a supernet's steps: what all resolutions of a step see, and that any step can be asked for."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from supernet.spaces import mobile
from torch import Tensor

from hwnas.errors import DataError
from hwnas.supernet.batches import StepBatches
from hwnas.supernet.images import SupernetImages
from hwnas.train.data import ImageData
from hwnas.train.distributed import Ranks
from hwnas.train.policies import Policy


def squares(n: int = 23, channels: int = 1) -> ImageData:
    """Black images, of class 0, and white ones."""
    y = torch.arange(n) % 2
    x = (255 * y).to(torch.uint8)[:, None, None, None].expand(n, channels, 16, 16).contiguous()
    return ImageData("squares", x, y, x[:2], y[:2], x[:2], y[:2], ("black", "white"))


def batches(data: ImageData, **settings: Any) -> StepBatches:
    images = SupernetImages(data, mobile(), torch.device("cpu"))
    return StepBatches(images, **{"size": 8, "augment": "crop", "mix": "none", "seed": 0, **settings})


def noise() -> ImageData:
    data = squares()
    x = torch.randint(0, 256, data.x_train.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageData("noise", x, data.y_train, x[:2], data.y_train[:2], x[:2], data.y_train[:2], ("a", "b"))


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_labels_are_mixed_as_images_are_at_every_resolution(mix: str) -> None:
    data = squares()
    made, mixed = batches(data, mix=mix), 0
    for step in range(6):
        batch = made.batch(0, step)
        assert batch.labels.shape[1] == 2
        for size in (8, 12):
            x = batch.inputs(size)
            assert x.shape == (len(batch.labels), 1, size, size)
            white = x.mean(dim=(1, 2, 3)) * data.std[0] + data.mean[0]
            torch.testing.assert_close(white, batch.labels[:, 1], rtol=0, atol=0.03)
        mixed += int(((batch.labels > 0.1) & (batch.labels < 0.9)).any())
    assert mixed >= 2


@pytest.mark.parametrize(
    "settings", [{"augment": kind} for kind in get_args(Policy)] + [{"mix": "mixup_cutmix"}], ids=str
)
def test_subnets_of_a_step_see_the_same_images_at_their_resolutions(settings: dict[str, Any]) -> None:
    first, second = (batches(noise(), **settings).batch(0, step) for step in (0, 1))
    large, small, other = first.inputs(12), first.inputs(8), second.inputs(8)

    def coarse(x: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2)

    torch.testing.assert_close(coarse(large), coarse(small), rtol=0, atol=0.1)
    assert not torch.allclose(coarse(large), coarse(other), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "settings", [{}, {"augment": "randaugment"}, {"augment": "random_resized_crop", "mix": "cutmix"}], ids=str
)
def test_any_step_can_be_asked_for(settings: dict[str, Any]) -> None:
    data = noise()
    made = batches(data, **settings)
    sequence = [made.batch(1, step) for step in range(5)]
    for step in (4, 2):
        alone = batches(data, **settings).batch(1, step)
        assert torch.equal(alone.inputs(8), sequence[step].inputs(8))
        assert torch.equal(alone.labels, sequence[step].labels)
    for seed, stage in ((0, 0), (1, 1)):
        other = batches(data, seed=seed, **settings).batch(stage, 4)
        assert not torch.equal(other.inputs(8), sequence[4].inputs(8))


def test_an_epoch_has_every_image_once() -> None:
    data = noise()
    made = batches(data, augment="none")
    assert made.per_epoch == 3
    for epoch in range(2):
        seen = torch.cat([made.batch(0, 3 * epoch + place).inputs(12) for place in range(3)])
        images = SupernetImages(data, mobile(), torch.device("cpu"))
        known = images.inputs(images.at(12, torch.arange(len(data.x_train))), 12)
        assert sorted(seen.sum(dim=(1, 2, 3)).tolist()) == sorted(known.sum(dim=(1, 2, 3)).tolist())
    assert not torch.equal(made.batch(0, 0).inputs(12), made.batch(0, 3).inputs(12))


def test_policies_of_colours_need_colours() -> None:
    with pytest.raises(DataError, match="2 channels"):
        batches(squares(channels=2), augment="randaugment")


@pytest.mark.parametrize("settings", [{}, {"augment": "randaugment", "mix": "cutmix"}, {"mix": "mixup"}], ids=str)
def test_processes_share_a_batch(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batches(noise(), **settings).batch(0, 1)
    labels, shares = [], []
    inputs: dict[int, list[Tensor]] = {8: [], 12: []}
    for index in range(3):
        for module in ("hwnas.train.distributed", "hwnas.supernet.batches"):
            monkeypatch.setattr(f"{module}.ranks", lambda index=index: Ranks(index, 3))
        mine = batches(noise(), **settings).batch(0, 1)
        labels.append(mine.labels)
        shares.append(mine.part)
        for size, found in inputs.items():
            found.append(mine.inputs(size))
    monkeypatch.undo()
    assert sum(shares) == pytest.approx(1)
    assert torch.equal(torch.cat(labels), whole.labels)
    for size, found in inputs.items():
        torch.testing.assert_close(torch.cat(found), whole.inputs(size))
