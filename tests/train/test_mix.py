from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hwnas.train.mix import Mix, mixer


def _batch() -> tuple[Tensor, Tensor]:
    x = torch.arange(5.0)[:, None, None, None].expand(-1, 2, 6, 6).clone()  # every image of one colour, its number
    return x, torch.tensor([0, 1, 2, 3, 4])


def test_none_changes_nothing() -> None:
    x, y = _batch()
    mixed, labels = mixer("none", 5)(x, y, 0)
    assert mixed is x
    assert labels is y


@pytest.mark.parametrize("mix", ["mixup", "cutmix", "mixup_cutmix"])
def test_labels_are_the_shares_of_an_image_and_the_one_before_it(mix: Mix) -> None:
    state, shares = torch.get_rng_state(), set()
    for seed in range(12):
        x, y = _batch()
        mixed, labels = mixer(mix, 6)(x, y, seed)
        again, _ = mixer(mix, 6)(*_batch(), seed)
        assert torch.equal(mixed, again)
        assert labels.shape == (5, 6)
        assert torch.allclose(labels.sum(1), torch.ones(5))
        assert torch.allclose(labels @ torch.arange(6.0), mixed.mean((1, 2, 3)), atol=1e-5)
        own, before = labels[2, 2].item(), labels[2, 1].item()
        assert own + before == pytest.approx(1)
        shares.add(round(own, 4))
        blended = bool(((mixed[2] % 1) > 1e-6).any())  # a colour between two images: mixup
        assert blended == (mix == "mixup") or mix == "mixup_cutmix" or own in (0.0, 1.0)
    assert len(shares) > 4
    assert torch.equal(torch.get_rng_state(), state)


def test_either_happens_where_both_may() -> None:
    seen = set()
    for seed in range(20):
        mixed, _ = mixer("mixup_cutmix", 5)(*_batch(), seed)
        seen.add(mixed[2].unique().numel() > 1)
    assert seen == {True, False}
