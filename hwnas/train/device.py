"""Where networks are trained and scored: an NVIDIA GPU if there is one, or the CPU."""

from __future__ import annotations

from typing import Literal

import torch

from hwnas.errors import RecipeError

TrainDevice = Literal["auto", "cpu", "cuda"]


def training_device(name: TrainDevice) -> torch.device:
    """The device of that name; "auto" is "cuda" where torch sees a GPU. Raises RecipeError on a GPU that is not there.

    Weights and checkpoints are the same files on every device. Results differ in rounding from one to another.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        build = "is a build without CUDA" if torch.version.cuda is None else "finds no NVIDIA GPU"
        raise RecipeError(
            f'train.device = "cuda": torch {torch.__version__} {build} here; see what nvidia-smi says, or take the CPU '
            'with device = "auto"'
        )
    return torch.device(name)


def mixed_precision(device: torch.device) -> bool:
    """Whether to compute in bfloat16: on GPUs that have it; it needs no loss scaling."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
