from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from hwnas.errors import DataError
from hwnas.train.augment import Augment
from hwnas.train.policies import Policy, augmented, moves_before, policy, window_length

POLICIES = get_args(Policy)


def _images(n: int, channels: int = 3, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (n, channels, 4, 4), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").to(torch.uint8)


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_policy_gives_images_of_the_size_asked_for(kind: Policy, channels: int) -> None:
    transform = policy(kind, 12 if kind == "random_resized_crop" else 16, (0.5,) * channels)
    assert transform is not None
    x = _images(20, channels)
    (made,) = augmented(transform, [x], [torch.arange(20)], list(range(20)))
    assert made.dtype == torch.uint8
    assert made.shape == ((20, channels, 12, 12) if kind == "random_resized_crop" else x.shape)
    if made.shape == x.shape:
        assert sum(not torch.equal(*pair) for pair in zip(made, x, strict=True)) > 5


def test_our_own_moves_need_none_of_torchvision() -> None:
    for kind in get_args(Augment):
        assert policy(kind, 16, (0.5,)) is None
        assert moves_before(kind) == kind
    assert moves_before("random_resized_crop") == "none"
    assert {moves_before(kind) for kind in POLICIES[1:]} == {"crop_flip"}


@pytest.mark.parametrize("kind", POLICIES)
def test_colours_need_one_or_three_channels(kind: Policy) -> None:
    if kind == "random_resized_crop":
        assert policy(kind, 16, (0.5, 0.5)) is not None
    else:
        with pytest.raises(DataError, match=f'augment = "{kind}" .* 2 channels, neither 1 nor 3'):
            policy(kind, 16, (0.5, 0.5))


def test_images_of_one_place_share_a_draw_and_those_of_a_batch_do_not() -> None:
    x = _images(1).expand(12, -1, -1, -1)
    transform = policy("random_resized_crop", 16, (0.5,) * 3)
    assert transform is not None
    state = torch.get_rng_state()
    one, two = augmented(transform, [x[:7], x[7:]], [torch.arange(7), torch.arange(5)], list(range(7)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one[:5], two)
    assert len({image.numpy().tobytes() for image in one}) == 7
    # a part of the same batches, as another process has it, and in another order
    (part,) = augmented(transform, [x[:3]], [torch.tensor([6, 2, 4])], list(range(7)))
    assert torch.equal(part, one[[6, 2, 4]])
    (other,) = augmented(transform, [x[:7]], [torch.arange(7)], list(range(7, 14)))
    assert not torch.equal(other, one)


@pytest.mark.parametrize(
    ("batch", "image", "expected"), [(64, 3 * 32 * 32, 16), (64, 3 * 224 * 224, 6), (512, 3 * 512 * 512, 1)]
)
def test_a_window_is_bounded_by_memory(batch: int, image: int, expected: int) -> None:
    assert window_length(batch, image) == expected
