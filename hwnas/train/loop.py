"""Train one network on images that stay in memory, and say how accurate it became.

Cross-entropy with label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7) under the schedule of
`schedule.py`. All randomness of an epoch follows from the seed and the epoch's number, so a training that goes on from
a checkpoint takes the very steps of one that was never stopped. Under torchrun the processes share every batch, see
`distributed.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hwnas.errors import HwnasError
from hwnas.train.average import WeightAverage
from hwnas.train.batches import Batches, placed
from hwnas.train.checkpoint import identity_of, load_checkpoint, save_checkpoint
from hwnas.train.config import TrainConfig as TrainConfig
from hwnas.train.data import ImageData
from hwnas.train.device import mixed_precision
from hwnas.train.distil import Distil, Lesson, training_mode
from hwnas.train.distributed import (
    average_gradients,
    average_statistics,
    connect,
    from_first,
    ranks,
    share,
    take_from_first,
    total,
)
from hwnas.train.evaluate import check_fits
from hwnas.train.evaluate import evaluate as evaluate
from hwnas.train.isolation import at_most_threads, own_random_state, repeatable_kernels
from hwnas.train.scalars import scalar_log
from hwnas.train.schedule import DEFAULTS, build_optimizer, epochs_left, rate_factor

Progress = Callable[[int, int, dict[str, float]], None]


class TrainingFailed(HwnasError, RuntimeError):
    """A training diverged; the message says when."""


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
    learning_rate: float = 0.0
    images_per_second: float = 0.0

    def epochs_left(self, config: TrainConfig) -> int:
        """Epochs still to train, as far as can be said."""
        if self.progress == 1:
            return 0
        return max(1, epochs_left(config.epochs, self.epoch, self.seconds, config.max_seconds))


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
    log_dir: Path | None = None,
) -> TrainResult:
    """Train `module` in place, from the weights it has, on images of size x size pixels; it stays on `device`.

    `checkpoint`: a file of this training alone, written after every epoch and gone on from if it exists.
    `progress(epochs done, epochs planned, facts)` is called after each epoch, once the checkpoint is on disk, and of
    the epoch that a checkpoint goes on from, of which a killed process may not have told; an exception it raises ends
    the training. Its facts of the epoch are "train_loss", "valid_accuracy" in percent, "learning_rate" of the last
    step and "images_per_second" without the scoring; of the training, "seconds" and "seconds_left", by the mean epoch.
    `log_dir`: where these go for TensorBoard. `max_threads` bounds torch's CPU threads meanwhile. The caller's random
    state and thread count are left as found. `distil` adds a teacher, and freezes in the first epochs what an
    inheritance left untouched.

    With `max_seconds` the training ends with the epoch in which that time runs out. After each epoch the number of
    epochs that still fit is estimated from those done, and the rest of the schedule is compressed into them, so that
    the learning rate reaches 0 at the end all the same (not if the first epoch alone takes that long). What such a
    training yields depends on the speed of the machine.

    Under torchrun every process calls this with the same arguments, begins with the weights of the first, and returns
    the same; only the first reads and writes the checkpoint, writes the log and calls `progress`.

    Raises TrainingFailed if the loss or a weight becomes infinite or NaN, DataError if the network or the augmentation
    does not fit data, RecipeError if `distil` does not fit the network or processes are too many for the batches,
    MissingPackageError if there is a `log_dir` and no TensorBoard.
    """
    device = connect(torch.device(device))
    settings = (config, data.name, data.class_names, len(data.x_train), data.mean, data.std, size)
    identity = identity_of(module, *settings, *([] if distil is None else [distil.identity]))
    checkpoint, log_dir = (checkpoint, log_dir) if ranks().first else (None, None)
    with at_most_threads(max_threads), own_random_state(device), repeatable_kernels(device):
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        take_from_first(module)
        check_fits(module, data, size)
        lesson = None if distil is None else Lesson(distil, module, device)
        rate, decay = DEFAULTS[config.optimizer]
        rate = rate if config.learning_rate is None else config.learning_rate
        decay = decay if config.weight_decay is None else config.weight_decay
        optimizer = build_optimizer(module, config.optimizer, decay, device)
        if lesson is not None:
            lesson.set_apart(optimizer, module)
        average = WeightAverage(module, config.ema) if config.ema else None
        batches = Batches(data, size, config, device)
        x_valid, y_valid = placed(data.x_valid, size, device), data.y_valid.to(device)
        state = from_first(None if checkpoint is None else load_checkpoint(checkpoint, identity))
        stand = _Stand()
        if state is not None:
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            if average is not None:
                average.restore(state["average"])
            stand = _Stand(**state["stand"])
        with scalar_log(log_dir, stand.epoch) as log:

            def tell() -> None:
                left = stand.epochs_left(config)
                facts = {name: value for name, value in asdict(stand).items() if name not in ("epoch", "progress")}
                facts["seconds_left"] = left * stand.seconds / stand.epoch
                log(stand.epoch, facts)
                if progress is not None:
                    progress(stand.epoch, stand.epoch + left, facts)

            def save_and_tell() -> None:
                if checkpoint is not None:
                    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "stand": asdict(stand)}
                    if average is not None:
                        state["average"] = average.state()
                    save_checkpoint(checkpoint, identity, state)
                tell()

            if stand.epoch:
                _first_alone(tell)
            while stand.progress < 1:
                started = time.monotonic()
                left = stand.epochs_left(config)
                end = 1.0 if left == 1 else stand.progress + (1 - stand.progress) / left
                steps = np.linspace(stand.progress, end, 2 * batches.count + 1)[1::2]
                rates = [rate * rate_factor(float(step), config.warmup_epochs / config.epochs) for step in steps]
                with training_mode(module, lesson.frozen(stand.epoch) if lesson is not None else ()):
                    loss = _train_epoch(module, batches, config, optimizer, lesson, average, rates, stand.epoch)
                trained = time.monotonic()
                if not math.isfinite(loss) or not _finite(module):
                    raise TrainingFailed(
                        f"training diverged in epoch {stand.epoch + 1} of {config.epochs}: its mean loss is {loss} at "
                        f"learning rates of {min(rates):.3g} to {max(rates):.3g}; lower learning_rate "
                        f"(peak {rate:.3g})"
                    )
                with nullcontext() if average is None else average.installed():
                    valid = _accuracy(module, x_valid, y_valid, data, size)
                seconds = stand.seconds + time.monotonic() - started
                over = config.max_seconds is not None and seconds >= config.max_seconds
                speed = len(data.x_train) / max(trained - started, 1e-9)
                stand = _Stand(stand.epoch + 1, 1.0 if over else end, seconds, loss, valid, rates[-1], speed)
                stand = from_first(stand)  # all take the same decisions, whatever their clocks say
                _first_alone(save_and_tell)
        if average is not None:
            average.install()
        test = _accuracy(module, data.x_test, data.y_test, data, size)
        return TrainResult(stand.valid_accuracy, test, stand.epoch, stand.train_loss, stand.seconds)


def _first_alone(work: Callable[[], None]) -> None:
    """Call it in the first process; an exception it raises ends the training in all of them.

    The others raise TrainingFailed with its text: they would wait for the first one for ever.
    """
    if ranks().count == 1:
        work()
        return
    error: Exception | None = None
    if ranks().first:
        try:
            work()
        except Exception as raised:
            error = raised
    reason = from_first(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if reason is not None:
        raise TrainingFailed(f"the first process ended the training: {reason}")


def _accuracy(module: nn.Module, x: Tensor, y: Tensor, data: ImageData, size: int) -> float:
    """Accuracy in percent, every process scoring its share of the images."""
    mine = share(x)
    correct = round(evaluate(module, mine, share(y), data.mean, data.std, size) / 100 * len(mine)) if len(mine) else 0
    return 100.0 * int(total(torch.tensor(correct, device=y.device))) / len(x)


def _train_epoch(
    module: nn.Module,
    batches: Batches,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    lesson: Lesson | None,
    average: WeightAverage | None,
    rates: Sequence[float],
    epoch: int,
) -> float:
    """Train on every image once, one learning rate per batch; the mean loss."""
    weights = list(module.parameters())
    device = weights[0].device
    precision = torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision(device))
    losses = torch.zeros((), device=device)
    for batch, rate in zip(batches.epoch(epoch), rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        with precision:
            logits = module(batch.inputs)
            loss = cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)
            if lesson is not None:
                loss = lesson.blended(loss, logits, batch.inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(weights, batch.part)
        optimizer.step()
        if average is not None:
            average.update()
        losses += loss.detach() * len(batch.inputs)
    average_statistics(module)
    return float(total(losses)) / batches.images


def _finite(module: nn.Module) -> bool:
    values = [value.isfinite().all() for value in module.state_dict().values()]
    return bool(torch.stack(values).all())
