"""The feature maps between the blocks of a network whose code we do not know.

Blocks are found in the tree of modules: the network itself and every `nn.Sequential` are opened, everything else is one
piece. A piece with a convolution in it begins a new block; normalisations and activations behind a bare convolution
belong to its block. The classifier begins where a piece without a convolution makes one pixel of a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hwnas.zeroshot import DegenerateNetworkError


class BlockFeatures:
    """The (n, c, h, w) map after each block, gathered in a forward."""

    def __init__(self, module: nn.Module) -> None:
        self._network = type(module).__name__
        # piece -> whether there is a convolution in it
        self._pieces = {piece: any(isinstance(part, _ConvNd) for part in piece.modules()) for piece in _pieces(module)}
        self._features: list[Tensor] = []
        self._open_ended = self._in_classifier = False

    def saw_call(self, part: nn.Module, inputs: tuple[Any, ...], output: Any) -> bool:
        """See what a module gives. True if it is kept, and must not be changed in place any more."""
        if part not in self._pieces or self._in_classifier:
            return False
        if not _is_map(output):
            self._in_classifier = bool(self._features)
        elif self._pieces[part]:
            self._features.append(output)
            self._open_ended = isinstance(part, _ConvNd)
            return True
        elif self._features and _pixels(output) == 1 and any(_pixels(given) > 1 for given in inputs):
            self._in_classifier = True
        elif self._features and self._open_ended:
            self._features[-1] = output
            return True
        return False

    def found(self) -> list[Tensor]:
        """The maps, in order. Raises DegenerateNetworkError unless there are two."""
        if len(self._features) < 2:
            raise DegenerateNetworkError(f"{self._network} has {len(self._features)} blocks with feature maps, not two")
        return self._features


def _pieces(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Sequential):
            yield from _pieces(child)
        else:
            yield child


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4


def _pixels(value: Any) -> int:
    return value.shape[-2] * value.shape[-1] if _is_map(value) else 0
