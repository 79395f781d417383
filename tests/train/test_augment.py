from __future__ import annotations

from typing import get_args

import pytest
import torch

from hwnas.errors import RecipeError
from hwnas.train.augment import Augment, draw_moves, move


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(n: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 2, size, size), dtype=torch.uint8, generator=_generator())


@pytest.mark.parametrize(("kind", "reach", "mirrors"), [("none", 0, {0}), ("crop", 4, {0}), ("crop_flip", 4, {0, 1})])
def test_moves_reach_an_eighth(kind: Augment, reach: int, mirrors: set[int]) -> None:
    moves = draw_moves(kind, 500, 32, _generator())
    assert moves.shape == (500, 3)
    for axis in (0, 1):
        assert moves[:, axis].unique().tolist() == list(range(-reach, reach + 1))
    assert set(moves[:, 2].tolist()) == mirrors
    assert torch.equal(moves, draw_moves(kind, 500, 32, _generator()))


def test_augmentations_of_torchvision_are_not_moves() -> None:
    with pytest.raises(RecipeError, match=r"one of \('none', 'crop', 'crop_flip'\) here, got 'randaugment'"):
        draw_moves("randaugment", 5, 8, _generator())  # type: ignore[arg-type]


def test_small_images_move_by_a_pixel() -> None:
    assert draw_moves("crop", 100, 4, _generator())[:, :2].unique().tolist() == [-1, 0, 1]


@pytest.mark.parametrize("kind", get_args(Augment))
def test_every_image_is_moved_as_a_loop_would(kind: Augment) -> None:
    size, reach = 9, 1
    x, moves = _images(20, size), draw_moves(kind, 20, size, _generator(1))
    moved = move(x, moves)
    assert (moved.dtype, moved.shape) == (x.dtype, x.shape)
    for image, (down, right, mirror), found in zip(x, moves.tolist(), moved, strict=True):
        padded = torch.nn.functional.pad(image.float(), [reach] * 4, mode="replicate").to(torch.uint8)
        expected = padded[:, reach - down :, reach - right :][:, :size, :size]
        assert torch.equal(found, expected.flip(-1) if mirror else expected)


def test_no_move_changes_nothing() -> None:
    x = _images(5, 8)
    assert torch.equal(move(x, torch.zeros(5, 3, dtype=torch.int64)), x)
