"""ProxylessNAS: weights and architecture parameters trained in turns, towards hard latency targets.

Cai, Zhu & Han, ICLR 2019 (arXiv 1812.00332). First the weights are warmed up, all paths being equally likely; then
every few steps of the weights, on training images, are followed by one of the architecture, on validation images.
Several targets share the warm-up, so a front costs one warm-up and a search per target. With another `strategy` the
same loop is another search (`strategy.py`).

Deviations from the authors' code: the loss leans towards the target with a pressure that follows it
(`latency_loss.py`), and the derived architecture keeps the target exactly (`derive.py`); the authors take the most
probable, whatever its latency. The expected latency is recomputed from the predictor every epoch. All randomness of an
epoch follows from the seed and the epoch's number, so a search that goes on from a checkpoint takes the very steps of
one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import RecipeError
from hwnas.progress import Progress, silent
from hwnas.space import Arch
from hwnas.supernet.alphas import Alphas, FloatMatrix
from hwnas.supernet.derive import derive
from hwnas.supernet.latency_loss import FIRST_PRESSURE, Form, PredictMs, edge_costs
from hwnas.supernet.recalibrate import recalibrate
from hwnas.supernet.relaxed import Relaxation, RelaxedNetwork, arch_of, inherited_network
from hwnas.supernet.steps import Goal, weight_step, weights_optimizer
from hwnas.supernet.strategy import STRATEGIES, make_strategy
from hwnas.train.average import WeightAverage
from hwnas.train.batches import Batches, placed
from hwnas.train.checkpoint import identity_of, load_checkpoint, save_checkpoint
from hwnas.train.config import TrainConfig
from hwnas.train.data import ImageData
from hwnas.train.evaluate import check_fits
from hwnas.train.isolation import at_most_threads, own_random_state, repeatable_kernels
from hwnas.train.loop import TrainingFailed
from hwnas.train.mix import Mix
from hwnas.train.policies import Augmentation
from hwnas.train.preprocess import normalise
from hwnas.train.scalars import scalar_log
from hwnas.train.schedule import rate_factor

_RECALIBRATED = 2048  # training images on which statistics are measured


@dataclass(frozen=True)
class ProxylessConfig:
    """How to search. An epoch is all training images once; every `arch_every` steps of weights, one of alphas.

    `pressure` is how much latency counts at first (None: the authors' value), `pressure_rate` how fast that follows the
    target (0: never). `samples` are the architectures of a step of REINFORCE. `ema`: decay per step of an average over
    the weights of a target's search (see `hwnas/train/average.py`), which the network found begins with; 0 takes the
    last weights. Raises RecipeError on a bad value.
    """

    warmup_epochs: int = 10
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.05
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    augment: Augmentation = "crop"
    mix: Mix = "none"
    ema: float = 0.0
    strategy: str = "binary"
    loss: Form = "add"
    pressure: float | None = None
    pressure_rate: float = 0.05
    arch_learning_rate: float = 0.02
    arch_every: int = 2
    samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.weights  # checks its part
        for name, good, expected in (
            ("warmup_epochs", self.warmup_epochs >= 0, "0 or above"),
            ("strategy", self.strategy in STRATEGIES, f"one of {tuple(STRATEGIES)}"),
            ("loss", self.loss in get_args(Form), f"one of {get_args(Form)}"),
            ("pressure", self.pressure is None or 0 <= self.pressure < math.inf, "0 or above, or None"),
            ("pressure_rate", 0 <= self.pressure_rate < math.inf, "0 or above"),
            ("arch_learning_rate", 0 < self.arch_learning_rate < math.inf, "above 0"),
            ("arch_every", self.arch_every >= 1, "at least 1"),
            ("samples", self.samples >= 1, "at least 1"),
        ):
            if not good:
                raise RecipeError(f"search setting {name} must be {expected}, got {getattr(self, name)!r}")

    @property
    def weights(self) -> TrainConfig:
        """What concerns the weights. Raises RecipeError on a bad value."""
        return TrainConfig(
            epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, label_smoothing=self.label_smoothing, augment=self.augment, mix=self.mix,
            ema=self.ema, seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class Epoch:
    """An epoch of a search: mean losses of both steps, and at its end the expected latency and the pressure."""

    weight_loss: float
    arch_loss: float
    expected_ms: float
    pressure: float


@dataclass(frozen=True, eq=False)
class Found:
    """What a target gave: the architecture, its predicted latency (at most the target), and the way there.

    `probabilities` are (edges, most options) at the end; `network` is the architecture's, on the CPU, with the weights
    of its candidates and statistics of its own: a start for its training.
    """

    target_ms: float
    arch: Arch
    choices: tuple[int, ...]
    ms: float
    probabilities: FloatMatrix = field(repr=False)
    history: tuple[Epoch, ...] = field(repr=False)
    network: nn.Module = field(repr=False)


def search(
    relaxation: Relaxation,
    data: ImageData,
    predict_ms: PredictMs,
    targets_ms: Sequence[float],
    config: ProxylessConfig,
    *,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
    max_threads: int | None = None,
    progress: Progress = silent,
    log_dir: Path | None = None,
) -> list[Found]:
    """Search an architecture for each target latency; `predict_ms` maps (n, slots) architectures to (n,) ms.

    `folder` keeps the warmed-up weights and how far each target's search is, after every epoch: a search that was
    killed goes on from there, and further targets begin with the same warm-up. `max_threads` bounds torch's CPU threads
    meanwhile; the caller's random state and threads are left as found. `log_dir`: where the losses, expected
    latency and pressure of every epoch go for TensorBoard, the warm-up and each target in a folder of its own.

    Raises InfeasibleError if no architecture keeps a target and RecipeError if there is none, before anything is
    trained; DataError if images do not fit the space; PredictorError if `predict_ms` gives no times; TrainingFailed if
    a loss becomes infinite or NaN.
    """
    if not targets_ms or not all(0 < target < math.inf for target in targets_ms):
        raise RecipeError(f"a search needs target latencies above 0 ms, got {list(targets_ms)}")
    for target in targets_ms:
        derive(relaxation, _new_alphas(relaxation, config), predict_ms, target)
    device = torch.device(device)
    with at_most_threads(max_threads), own_random_state(device), repeatable_kernels(device):
        searching = _Searching(relaxation, data, predict_ms, config, folder, device, progress, log_dir)
        warm = searching.warm_up()
        return [searching.towards(target, warm) for target in targets_ms]


class _Searching:
    """What the phases of a search share."""

    def __init__(
        self,
        relaxation: Relaxation,
        data: ImageData,
        predict_ms: PredictMs,
        config: ProxylessConfig,
        folder: Path | None,
        device: torch.device,
        progress: Progress,
        log_dir: Path | None,
    ) -> None:
        self.relaxation, self.data, self.predict_ms, self.config = relaxation, data, predict_ms, config
        self.folder, self.device, self.progress, self.log_dir = folder, device, progress, log_dir
        first = arch_of(relaxation, [0] * len(relaxation.edges))
        self.size = relaxation.space.input_shape(first)[1]
        check_fits(relaxation.space.build(first), data, self.size)
        self.strategy = make_strategy(config.strategy)
        self.network = RelaxedNetwork(relaxation, seed=config.seed)
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batches = Batches(data, self.size, config.weights, device)
        self.valid = placed(data.x_valid, self.size, device), data.y_valid.to(device)
        facts = (data.name, data.class_names, len(data.x_train), len(data.x_valid), data.mean, data.std, self.size)
        warmed = (
            replace(config.weights, epochs=1, ema=0.0),
            config.warmup_epochs,
            config.strategy,
        )  # whatever comes after it
        self.identity = identity_of(self.network, relaxation.edges, *warmed, facts)

    def warm_up(self) -> dict[str, Tensor]:
        """Weights trained with all paths equally likely."""
        config, alphas = self.config, _new_alphas(self.relaxation, self.config)
        optimizer = weights_optimizer(self.network, config.weight_decay, self.device)
        state = self._load("warm-up", self.identity, optimizer)
        for epoch in range(state.get("epoch", 0), config.warmup_epochs):
            rng = self._rng(epoch)
            losses = [
                weight_step(self.network, optimizer, self.strategy.weight_mixer(alphas, rng), *batch)
                for batch in self._epoch_batches(optimizer, epoch, epoch, config.warmup_epochs)
            ]
            mean = self._mean(losses, "warm-up", epoch)
            self._save("warm-up", self.identity, optimizer, {"epoch": epoch + 1})
            self._log("warm-up", epoch + 1, {"weight_loss": mean})
            self.progress("warm-up", epoch + 1, config.warmup_epochs)
        return {name: value.clone() for name, value in self.network.state_dict().items()}

    def towards(self, target_ms: float, warm: dict[str, Tensor]) -> Found:
        """The search for one target, from warmed-up weights."""
        config, name = self.config, f"target {target_ms:g} ms"
        alphas = _new_alphas(self.relaxation, config)
        pressure = FIRST_PRESSURE[config.loss] if config.pressure is None else config.pressure
        goal = Goal(
            self.relaxation, self.predict_ms, target_ms, config.loss, pressure, config.pressure_rate, config.samples
        )
        self.network.load_state_dict(warm)
        optimizer = weights_optimizer(self.network, config.weight_decay, self.device)
        # Another table is another search: what it says of the edges at first stands for it.
        costs = edge_costs(self.relaxation, self.predict_ms, alphas, self._rng(0))
        identity = identity_of(self.network, self.identity, config, target_ms, costs.base_ms, costs.costs_ms.tolist())
        average = WeightAverage(self.network, config.ema) if config.ema else None
        history: list[Epoch] = []
        if state := self._load(name, identity, optimizer):
            alphas.load(state["alphas"])
            goal.pressure, goal.baseline = state["pressure"], state["baseline"]
            history = [Epoch(**epoch) for epoch in state["history"]]
            if average is not None:
                average.restore(state["average"])
        while len(history) < config.epochs:
            history.append(self._epoch(len(history), optimizer, average, alphas, goal, name))
            self._save(name, identity, optimizer, {
                "alphas": alphas.state(), "pressure": goal.pressure, "baseline": goal.baseline,
                "history": [asdict(epoch) for epoch in history],
                "average": None if average is None else average.state(),
            })  # fmt: skip
            self._log(name, len(history), asdict(history[-1]))
            self.progress(name, len(history), config.epochs)
        derived = derive(self.relaxation, alphas, self.predict_ms, target_ms)
        if average is not None:
            average.install()
        network = inherited_network(self.relaxation, self.network, derived.choices)
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        recalibrate(network, self._plain_batches()).cpu()
        p = alphas.probabilities()
        return Found(target_ms, derived.arch, derived.choices, derived.ms, p, tuple(history), network)

    def _epoch(
        self,
        number: int,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        alphas: Alphas,
        goal: Goal,
        name: str,
    ) -> Epoch:
        config = self.config
        after = config.warmup_epochs + number
        rng = self._rng(after)
        costs = edge_costs(self.relaxation, self.predict_ms, alphas, rng)
        weight_losses: list[Tensor] = []
        arch_losses: list[float] = []
        every = min(config.arch_every, self.batches.count)
        for batch in self._epoch_batches(optimizer, after, number, config.epochs):
            mixer = self.strategy.weight_mixer(alphas, rng)
            weight_losses.append(weight_step(self.network, optimizer, mixer, *batch))
            if average is not None:
                average.update()
            if len(weight_losses) % every == 0:
                images = self._valid_batch(rng)
                arch_losses.append(goal.step(self.network, self.strategy, alphas, costs, *images, rng))
        mean = self._mean(weight_losses, name, number)
        expected_ms = costs.expected_ms(alphas.probabilities())
        return Epoch(mean, float(np.mean(arch_losses)), expected_ms, goal.pressure)

    def _epoch_batches(
        self, optimizer: torch.optim.Optimizer, draw: int, epoch: int, epochs: int
    ) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Training batches, the optimiser at each one's learning rate (a cosine over the phase), and the smoothing."""
        self.network.train()
        for step, batch in enumerate(self.batches.epoch(draw)):
            rate = self.config.learning_rate * rate_factor((epoch + (step + 0.5) / self.batches.count) / epochs, 0.0)
            for group in optimizer.param_groups:
                group["lr"] = rate
            yield batch.inputs, batch.labels, self.config.label_smoothing

    def _valid_batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        x, y = self.valid
        rows = torch.from_numpy(rng.choice(len(x), min(self.config.batch_size, len(x)), replace=False))
        return self._inputs(x[rows.to(x.device)]), y[rows.to(y.device)]

    def _plain_batches(self) -> Iterator[Tensor]:
        for images in torch.split(self.data.x_train[:_RECALIBRATED], 256):
            yield self._inputs(images)

    def _inputs(self, images: Tensor) -> Tensor:
        inputs = normalise(images.to(self.device), self.data.mean, self.data.std, self.size)
        return inputs.contiguous(memory_format=torch.channels_last)

    def _rng(self, draw: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, draw))

    def _mean(self, losses: Sequence[Tensor], name: str, epoch: int) -> float:
        mean = float(torch.stack(list(losses)).mean())
        if not math.isfinite(mean):
            raise TrainingFailed(
                f"{name}: training diverged in epoch {epoch + 1}, its mean loss is {mean}; lower learning_rate "
                f"({self.config.learning_rate:.3g})"
            )
        return mean

    def _log(self, name: str, epoch: int, facts: dict[str, float]) -> None:
        folder = None if self.log_dir is None else self.log_dir / name.replace(" ", "-")
        with scalar_log(folder, epoch) as log:  # an epoch takes long enough for a file of its own
            log(epoch, facts)

    def _load(self, name: str, identity: str, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What `_save` kept of a phase, with weights and optimiser put back; nothing if there is none of it."""
        state = None if self.folder is None else load_checkpoint(_path(self.folder, name), identity)
        if state is None:
            return {}
        self.network.load_state_dict(state.pop("network"))
        optimizer.load_state_dict(state.pop("optimizer"))
        return state

    def _save(self, name: str, identity: str, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        if self.folder is not None:
            trained = {"network": self.network.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(_path(self.folder, name), identity, trained | state)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.pt"


def _new_alphas(relaxation: Relaxation, config: ProxylessConfig) -> Alphas:
    return Alphas([len(edge.options) for edge in relaxation.edges], config.arch_learning_rate)
