from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch

from hwnas.train import batches
from hwnas.train.batches import Batch, Batches
from hwnas.train.config import TrainConfig
from hwnas.train.data import ImageData, load_data
from hwnas.train.policies import Augmentation
from hwnas.train.preprocess import normalise

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def few() -> ImageData:
    digits = load_data("digits")
    return dataclasses.replace(digits, x_train=digits.x_train[:97], y_train=digits.y_train[:97])


def _epoch(data: ImageData, config: TrainConfig, size: int = 8, number: int = 0) -> list[Batch]:
    return list(Batches(data, size, config, CPU).epoch(number))


@pytest.mark.parametrize("augment", get_args(Augmentation))
@pytest.mark.parametrize("size", [8, 12])
def test_an_epoch_has_every_image_once(few: ImageData, augment: Augmentation, size: int) -> None:
    config = TrainConfig(batch_size=16, augment=augment)
    state = torch.get_rng_state()
    try:
        found, again, other = (_epoch(few, config, size, number) for number in (3, 3, 4))
    finally:
        torch.set_rng_state(state)
    assert [len(batch.labels) for batch in found] == [14] * 6 + [13]
    assert torch.cat([batch.labels for batch in found]).bincount().tolist() == few.y_train.bincount().tolist()
    for batch, same, another in zip(found, again, other, strict=True):
        assert batch.inputs.shape == (len(batch.labels), 1, size, size)
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
        assert batch.part == 1
        assert torch.equal(batch.inputs, same.inputs)
        assert not torch.equal(batch.inputs, another.inputs)


def test_random_resized_crops_are_of_the_images_as_they_are(few: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other augmentations see images of the size that the network reads, resized once beforehand."""
    seen = []

    def spy(transform: object, images: list[torch.Tensor], *arguments: object) -> list[torch.Tensor]:
        seen.extend(images)
        return [image[:, :, :4, :4] for image in images]

    monkeypatch.setattr(batches, "augmented", spy)
    _epoch(few, TrainConfig(batch_size=16, augment="random_resized_crop"), 4)
    assert {image.shape[2:] for image in seen} == {(8, 8)}
    seen.clear()
    _epoch(few, TrainConfig(batch_size=16, augment="randaugment"), 4)
    assert {image.shape[2:] for image in seen} == {(4, 4)}


def test_mixed_images_are_those_of_the_batch(few: ImageData) -> None:
    plain = _epoch(few, TrainConfig(batch_size=16, augment="none"))
    mixed = _epoch(few, TrainConfig(batch_size=16, augment="none", mix="mixup"))
    for before, after in zip(plain, mixed, strict=True):
        assert after.labels.shape == (len(before.labels), 10)
        own = after.labels.gather(1, before.labels[:, None])
        same = before.labels == before.labels.roll(1)
        share = own[~same].mean()
        expected = share * before.inputs + (1 - share) * before.inputs.roll(1, 0)
        assert torch.allclose(after.inputs, expected, atol=1e-5)


def test_inputs_are_standardised_as_everywhere(few: ImageData) -> None:
    inputs = torch.cat([batch.inputs for batch in _epoch(few, TrainConfig(batch_size=16, augment="none"), 12)])
    expected = normalise(few.x_train, few.mean, few.std, 12)
    assert torch.equal(inputs.flatten(1).sum(1).sort()[0], expected.flatten(1).sum(1).sort()[0])
