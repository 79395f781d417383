"""Random shifts and mirror images, drawn for a whole epoch at once and applied to a batch in one indexing."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from hwnas.errors import RecipeError

Augment = Literal["none", "crop", "crop_flip"]


def draw_moves(kind: Augment, n: int, size: int, generator: torch.Generator) -> Tensor:
    """(n, 3) int64: per image the shift down, the shift right (each up to size/8 pixels), and 1 to mirror, else 0.

    Raises RecipeError on another kind.
    """
    if kind not in get_args(Augment):
        raise RecipeError(f"augment must be one of {get_args(Augment)} here, got {kind!r}")
    moves = torch.zeros(n, 3, dtype=torch.int64)
    if kind == "none":
        return moves
    reach = max(1, size // 8)
    moves[:, :2] = torch.randint(-reach, reach + 1, (n, 2), generator=generator)
    if kind == "crop_flip":
        moves[:, 2] = torch.randint(0, 2, (n,), generator=generator)
    return moves


def move(x: Tensor, moves: Tensor) -> Tensor:
    """(n, channels, size, size) images moved by (n, 3) of `draw_moves`; the border pixels fill what comes in.

    The result is in the memory format channels_last: whole pixels are copied, which is two to three times as fast.
    """
    n, channels, size, _ = x.shape
    steps = torch.arange(size, device=x.device)
    rows = (steps - moves[:, :1]).clamp_(0, size - 1)
    columns = (steps - moves[:, 1:2]).clamp_(0, size - 1)
    columns = torch.where(moves[:, 2:] == 1, columns.flip(1), columns)
    image = torch.arange(n, device=x.device)[:, None, None]
    source = (image * size + rows[:, :, None]) * size + columns[:, None, :]
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    return pixels.index_select(0, source.flatten()).view(n, size, size, channels).permute(0, 3, 1, 2)
