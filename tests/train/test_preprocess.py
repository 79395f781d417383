from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hwnas.train import preprocess
from hwnas.train.preprocess import normalise, resize


def _images(n: int = 6, channels: int = 3, height: int = 9, width: int = 7) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_the_same_size_is_left_as_it_is() -> None:
    x = _images(height=8, width=8)
    assert resize(x, 8) is x


@pytest.mark.parametrize("size", [3, 5, 8, 24])
def test_resizing_is_pillows_bilinear_within_a_grey_level(size: int) -> None:
    x = _images(n=1, channels=1)
    pillow = Image.fromarray(x[0, 0].numpy()).resize((size, size), Image.Resampling.BILINEAR)
    assert np.abs(resize(x, size)[0, 0].numpy().astype(int) - np.asarray(pillow).astype(int)).max() <= 1


@pytest.mark.parametrize("size", [4, 24])
def test_an_image_does_not_depend_on_its_company(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _images()
    together = resize(x, size)
    monkeypatch.setattr(preprocess, "_CHUNK", 2)
    assert torch.equal(resize(x, size), together)
    assert torch.equal(torch.cat([resize(image[None], size) for image in x]), together)
    assert torch.equal(resize(x.contiguous(memory_format=torch.channels_last), size), together)


def test_halves_are_rounded_to_even() -> None:
    x = torch.tensor([[[[0, 1], [0, 1]]], [[[1, 2], [1, 2]]]], dtype=torch.uint8)  # means 0.5 and 1.5
    assert resize(x, 1).flatten().tolist() == [0, 2]


def test_normalised_pixels_follow_the_documented_steps() -> None:
    x, mean, std = _images(height=8, width=8), (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    pixels = x.numpy().astype(np.float32) / np.float32(255)
    expected = (pixels - np.float32(mean).reshape(-1, 1, 1)) / np.float32(std).reshape(-1, 1, 1)
    found = normalise(x, mean, std, 8)
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), expected)


def test_resizing_beforehand_or_on_the_way_is_the_same() -> None:
    x = _images()
    before = x.clone()
    assert torch.equal(normalise(x, [0.5] * 3, [0.2] * 3, 12), normalise(resize(x, 12), [0.5] * 3, [0.2] * 3, 12))
    assert torch.equal(x, before)
