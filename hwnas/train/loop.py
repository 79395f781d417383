"""Train one network on images that stay in memory, and say how accurate it became.

Cross-entropy with label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7) under the schedule of
`schedule.py`. All randomness of an epoch follows from the seed and the epoch's number, so a training that goes on from
a checkpoint takes the very steps of one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hwnas.errors import DataError, HwnasError, RecipeError
from hwnas.train.augment import Augment, draw_moves, move
from hwnas.train.checkpoint import identity_of, load_checkpoint, save_checkpoint
from hwnas.train.data import ImageData
from hwnas.train.distil import Distil, Lesson, training_mode
from hwnas.train.isolation import at_most_threads, own_random_state, repeatable_kernels, seed_modules
from hwnas.train.preprocess import normalise, resize
from hwnas.train.schedule import DEFAULTS, OptimizerName, build_optimizer, epochs_left, rate_factor

_RESIZED_BYTES = 4 * 2**30  # a larger resized data set is resized batch by batch instead

Progress = Callable[[int, int, dict[str, float]], None]


class TrainingFailed(HwnasError, RuntimeError):
    """A training diverged; the message says when."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. `learning_rate` (at its peak) and `weight_decay`: None takes what suits the optimiser.

    Raises RecipeError on a value that cannot be used.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float | None = None
    weight_decay: float | None = None
    label_smoothing: float = 0.1
    warmup_epochs: float = 1
    optimizer: OptimizerName = "sgd"
    augment: Augment = "crop"
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
            ("augment", self.augment in get_args(Augment), f"one of {get_args(Augment)}"),
            ("max_seconds", seconds is None or seconds > 0, "above 0, or None"),
            ("seed", self.seed >= 0, "0 or above"),
        ):
            if not good:
                raise RecipeError(f"training setting {name} must be {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class TrainResult:
    """Accuracies in percent after the last epoch; its mean loss; epochs and seconds over all resumed parts."""

    valid_accuracy: float
    test_accuracy: float
    epochs: int
    train_loss: float
    seconds: float


@dataclass(frozen=True)
class _Stand:
    """How far a training is: `progress` is the share of the schedule that is done, 1 at the end."""

    epoch: int = 0
    progress: float = 0.0
    seconds: float = 0.0
    train_loss: float = 0.0
    valid_accuracy: float = 0.0


def train(
    module: nn.Module,
    data: ImageData,
    size: int,
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    max_threads: int | None = None,
    distil: Distil | None = None,
) -> TrainResult:
    """Train `module` in place, from the weights it has, on images of size x size pixels; it stays on `device`.

    `checkpoint`: a file of this training alone, written after every epoch and gone on from if it exists.
    `progress(epochs done, epochs planned, {"train_loss", "valid_accuracy" in percent, "seconds"})` is called after
    each epoch, once the checkpoint is on disk, and of the epoch that a checkpoint goes on from, of which a killed
    process may not have told; an exception it raises ends the training. `max_threads` bounds torch's CPU threads
    meanwhile. The caller's random state and thread count are left as found. `distil` adds a teacher, and
    freezes in the first epochs what an inheritance left untouched.

    With `max_seconds` the training ends with the epoch in which that time runs out. After each epoch the number of
    epochs that still fit is estimated from those done, and the rest of the schedule is compressed into them, so that
    the learning rate reaches 0 at the end all the same (not if the first epoch alone takes that long). What such a
    training yields depends on the speed of the machine.

    Raises TrainingFailed if the loss or a weight becomes infinite or NaN, DataError if the network does not fit data,
    RecipeError if `distil` does not fit the network.
    """
    device = torch.device(device)
    settings = (config, data.name, data.class_names, len(data.x_train), data.mean, data.std, size)
    identity = identity_of(module, *settings, *([] if distil is None else [distil.identity]))
    with at_most_threads(max_threads), own_random_state(device), repeatable_kernels(device):
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        _check_fits(module, data, size)
        lesson = None if distil is None else Lesson(distil, module, device)
        rate, decay = DEFAULTS[config.optimizer]
        rate = rate if config.learning_rate is None else config.learning_rate
        decay = decay if config.weight_decay is None else config.weight_decay
        optimizer = build_optimizer(module, config.optimizer, decay, device)
        if lesson is not None:
            lesson.set_apart(optimizer, module)
        train_set = _placed(data.x_train, size, device), data.y_train.to(device)
        valid_set = _placed(data.x_valid, size, device), data.y_valid.to(device)
        stand = _Stand()
        if checkpoint is not None and (state := load_checkpoint(checkpoint, identity)) is not None:
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            stand = _Stand(**state["stand"])
            _tell(progress, stand, 0 if stand.progress == 1 else _left(config, stand))
        while stand.progress < 1:
            started = time.monotonic()
            left = _left(config, stand)
            end = 1.0 if left == 1 else stand.progress + (1 - stand.progress) / left
            steps = np.linspace(stand.progress, end, 2 * _batches(len(data.x_train), config.batch_size) + 1)[1::2]
            rates = [rate * rate_factor(float(step), config.warmup_epochs / config.epochs) for step in steps]
            with training_mode(module, lesson.frozen(stand.epoch) if lesson is not None else ()):
                loss = _train_epoch(module, *train_set, data, size, config, optimizer, lesson, rates, stand.epoch)
            if not math.isfinite(loss) or not _finite(module):
                raise TrainingFailed(
                    f"training diverged in epoch {stand.epoch + 1} of {config.epochs}: its mean loss is {loss} at "
                    f"learning rates of {min(rates):.3g} to {max(rates):.3g}; lower learning_rate (peak {rate:.3g})"
                )
            valid = evaluate(module, *valid_set, data.mean, data.std, size)
            seconds = stand.seconds + time.monotonic() - started
            over = config.max_seconds is not None and seconds >= config.max_seconds
            stand = _Stand(stand.epoch + 1, 1.0 if over else end, seconds, loss, valid)
            if checkpoint is not None:
                state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "stand": asdict(stand)}
                save_checkpoint(checkpoint, identity, state)
            _tell(progress, stand, 0 if stand.progress == 1 else max(1, left - 1))
        test = evaluate(module, data.x_test, data.y_test, data.mean, data.std, size)
        return TrainResult(stand.valid_accuracy, test, stand.epoch, stand.train_loss, stand.seconds)


def _left(config: TrainConfig, stand: _Stand) -> int:
    return epochs_left(config.epochs, stand.epoch, stand.seconds, config.max_seconds)


def _tell(progress: Progress | None, stand: _Stand, left: int) -> None:
    if progress is not None:
        facts = {"train_loss": stand.train_loss, "valid_accuracy": stand.valid_accuracy, "seconds": stand.seconds}
        progress(stand.epoch, stand.epoch + left, facts)


def evaluate(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    batch_size: int = 256,
) -> float:
    """Accuracy in percent on (n, channels, height, width) uint8 images with (n,) labels, in float32.

    Computed where the network is, in evaluation mode; its mode is left as found.
    """
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    try:
        with torch.inference_mode():
            for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
                inputs = normalise(images.to(device), mean, std, size).contiguous(memory_format=torch.channels_last)
                correct += (module(inputs).argmax(1) == labels.to(device)).sum()
    finally:
        module.train(was_training)
    return 100.0 * int(correct) / len(x)


def _train_epoch(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    data: ImageData,
    size: int,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    lesson: Lesson | None,
    rates: Sequence[float],
    epoch: int,
) -> float:
    """Train on every image once, one learning rate per batch; the mean loss."""
    device = next(module.parameters()).device
    order_seed, module_seed = np.random.SeedSequence((config.seed, epoch)).generate_state(2, np.uint32).tolist()
    generator = torch.Generator().manual_seed(order_seed)
    seed_modules(module_seed, device)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    moves = draw_moves(config.augment, len(x), size, generator).to(device)
    total = torch.zeros((), device=device)
    for batch, step, rate in zip(order.tensor_split(len(rates)), moves.tensor_split(len(rates)), rates, strict=True):
        images = resize(x[batch], size).to(device)
        if config.augment != "none":
            images = move(images, step)
        labels = y[batch.to(device)]
        inputs = normalise(images, data.mean, data.std, size).contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=_mixed(device)):
            logits = module(inputs)
            loss = cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            if lesson is not None:
                loss = lesson.blended(loss, logits, inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach() * len(batch)
    return float(total) / len(x)


def _batches(n: int, batch_size: int) -> int:
    """Into how many batches n images go: nearly equal ones, never one of a single image (batch normalisation)."""
    return max(1, min(math.ceil(n / batch_size), n // 2))


def _mixed(device: torch.device) -> bool:
    """Whether to compute in bfloat16: on GPUs that have it; it needs no loss scaling."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _placed(x: Tensor, size: int, device: torch.device) -> Tensor:
    """The images resized once and kept on the device, or as they are, to be resized by the batch, if that is huge."""
    if len(x) * x.shape[1] * size * size > _RESIZED_BYTES:
        return x
    return resize(x, size).to(device)


def _finite(module: nn.Module) -> bool:
    values = [value.isfinite().all() for value in module.state_dict().values()]
    return bool(torch.stack(values).all())


def _check_fits(module: nn.Module, data: ImageData, size: int) -> None:
    """Raise DataError unless the network turns images of this data set into one logit per class."""
    device = next(module.parameters()).device
    shape = (2, data.channels, size, size)
    was_training = module.training
    try:
        with torch.inference_mode():
            logits = module.eval()(torch.zeros(shape, device=device))
    except RuntimeError as error:
        raise DataError(f"the network cannot read a batch of {data.name}, shape {shape}: {error}") from error
    finally:
        module.train(was_training)
    if logits.shape != (2, data.num_classes):
        raise DataError(
            f"the network turns a batch of {data.name} into shape {tuple(logits.shape)}, expected "
            f"{(2, data.num_classes)}: build it with num_classes={data.num_classes}"
        )
