"""How a network is trained: what a recipe's [train] says, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from hwnas.errors import RecipeError
from hwnas.train.mix import Mix
from hwnas.train.policies import Augmentation
from hwnas.train.schedule import OptimizerName


@dataclass(frozen=True)
class TrainConfig:
    """How to train. `learning_rate` (at its peak) and `weight_decay`: None takes what suits the optimiser.

    `batch_size` is that of all processes together. `ema`: decay per step of the average over the weights (see
    `average.py`), which then is what is scored and returned; 0 takes the last weights. Raises RecipeError on a value
    that cannot be used.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float | None = None
    weight_decay: float | None = None
    label_smoothing: float = 0.1
    warmup_epochs: float = 1
    optimizer: OptimizerName = "sgd"
    augment: Augmentation = "crop"
    mix: Mix = "none"
    ema: float = 0.0
    max_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rate, decay, seconds = self.learning_rate, self.weight_decay, self.max_seconds
        for name, good, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 2, "at least 2, for batch normalisation"),
            ("learning_rate", rate is None or 0 < rate < math.inf, "above 0"),
            ("weight_decay", decay is None or 0 <= decay < math.inf, "0 or above"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("warmup_epochs", 0 <= self.warmup_epochs < math.inf, "0 or above"),
            ("optimizer", self.optimizer in get_args(OptimizerName), f"one of {get_args(OptimizerName)}"),
            ("augment", self.augment in get_args(Augmentation), f"one of {get_args(Augmentation)}"),
            ("mix", self.mix in get_args(Mix), f"one of {get_args(Mix)}"),
            ("ema", 0 <= self.ema < 1, "in [0, 1)"),
            ("max_seconds", seconds is None or seconds > 0, "above 0, or None"),
            ("seed", self.seed >= 0, "0 or above"),
        ):
            if not good:
                raise RecipeError(f"training setting {name} must be {expected}, got {getattr(self, name)!r}")
