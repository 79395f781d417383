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
from hwnas.zeroshot.preserved import preserved


def block_features(module: nn.Module, images: Tensor) -> list[Tensor]:
    """The (n, c, h, w) map after each block, in one forward of (n, c, h, w) images in the module's own mode.

    Raises DegenerateNetworkError unless there are two.
    """
    features: list[Tensor] = []
    open_ended = in_classifier = False

    def saw_output(piece: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        nonlocal open_ended, in_classifier
        if in_classifier or not (isinstance(output, Tensor) and output.dim() == 4):
            in_classifier = in_classifier or bool(features)
        elif any(isinstance(part, _ConvNd) for part in piece.modules()):
            features.append(output)
            open_ended = isinstance(piece, _ConvNd)
        elif features and _pixels(output) == 1 and _pixels(*inputs) > 1:
            in_classifier = True
        elif features and open_ended:
            features[-1] = output
        # the next block may work in place
        return output.clone() if features and output is features[-1] else None

    with preserved(module) as hooks:
        hooks += [piece.register_forward_hook(saw_output) for piece in dict.fromkeys(_pieces(module))]
        module(images)
    if len(features) < 2:
        raise DegenerateNetworkError(f"{type(module).__name__} has {len(features)} blocks with feature maps, not two")
    return features


def _pieces(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Sequential):
            yield from _pieces(child)
        else:
            yield child


def _pixels(feature_map: Tensor) -> int:
    return feature_map.shape[-2] * feature_map.shape[-1]
