"""Train the network of one trial, from scratch or from its parent's weights, and record whatever becomes of it.

A training that diverges, runs out of memory or of time, or fails in any other way is a failed trial with its reason,
and the search goes on. Weights are on disk before the trial is told, and a checkpoint after every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from hwnas.artifacts import attach
from hwnas.errors import DataError
from hwnas.run import Run, train_objectives, train_study
from hwnas.search.fidelity import make_stopper
from hwnas.search.fidelity.stopper import Training, one_hot
from hwnas.search.samplers.base import PARENT
from hwnas.search.study import ARCH, record_failure, record_stop, record_trial
from hwnas.sections import TrainSection
from hwnas.space import Arch, parse_arch
from hwnas.train.device import training_device
from hwnas.train.distil import Distil
from hwnas.train.inherit import inherit
from hwnas.train.loop import TrainConfig, train
from hwnas.train.schedule import DEFAULTS
from hwnas.train.timeout import TimeLimit
from hwnas.trained import build, save_weights, trained_network, weights_path
from hwprof.files import write_atomic

CURVE = "curve"  # user attribute of a trial: validation accuracy in percent after every epoch
EVALUATED = "evaluated"  # user attribute of a trial that an evaluation was spent on, whatever came of it

# A process that dies in an epoch of a network is no accident after so many times, if it always is the same epoch.
MAX_ATTEMPTS = 5
_CHILD_RATE = 0.5  # peak of a child's learning rate beside that of others, unless the recipe says
# Settings of [train] that say where and how long, not how a network is trained.
_OTHER = {
    "threads",
    "device",
    "log",
    "inherit",
    "child_epochs",
    "child_learning_rate",
    "distil_weight",
    "timeout_seconds",
    "stopper",
    "stopper_options",
}


class _Lost(Exception):
    """This process was silent for so long that another has taken up the trial."""


class _NotTheNetwork(Exception):
    """What failed is the storage or the disk, and the network is not to blame; the cause says more."""


class _Deadly(Exception):
    """A process died again and again while it trained the network."""


class _Stopped(Exception):
    """A training that is not worth its remaining epochs."""


def train_trial(
    run: Run, trial: Trial, progress: Callable[[int, int], None], holds: Callable[[], bool] = lambda: True
) -> None:
    """Train the trial's architecture and tell the trial; `progress` is told epochs done and planned.

    While `holds` says no, the trial is another's, and nothing is told. Raises DataError if the space does not fit the
    data, which no other network would mend, and what the storage or the disk raises: the trial is then as it was.
    """
    study, arch = train_study(run), parse_arch(trial.user_attrs[ARCH])
    checkpoint = run.folder / "weights" / f"{run.network_name(arch)}.checkpoint"
    latency = float(run.predictor.predict_ms(np.array([arch]))[0])
    try:
        values, facts = _train(run, study, trial, arch, latency, checkpoint, progress, holds)
        tell = partial(record_trial, study, run.space, arch, values, facts, trial=trial)
    except _Lost:
        return
    except _Deadly as error:
        tell = partial(record_failure, study, run.space, arch, str(error), trial=trial)
    except _NotTheNetwork as error:
        raise error.__cause__ or error from None
    except _Stopped as stopped:
        tell = partial(record_stop, study, trial, str(stopped), {"latency_ms": latency})
    except (DataError, OSError):
        raise
    except Exception as error:  # whatever a network, a kernel or a device may raise
        tell = partial(record_failure, study, run.space, arch, f"{type(error).__name__}: {error}", trial=trial)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what a network that ran out of memory had, the next may need
    _end(trial, holds, checkpoint, tell)


class _Attempt:
    """A file beside a checkpoint that counts how often the epoch was begun that goes on now."""

    def __init__(self, checkpoint: Path) -> None:
        self._path = checkpoint.with_name(checkpoint.name + ".begun")

    def begin(self) -> None:
        """Note that an epoch begins. Raises _Deadly if it has so often that it seems to kill the process."""
        times = int(self._path.read_text(encoding="utf-8")) if self._path.exists() else 0
        if times >= MAX_ATTEMPTS:
            raise _Deadly(f"the process died {times} times in the same epoch of this network; was there enough memory?")
        write_atomic(self._path, str(times + 1))

    def end(self) -> None:
        """The epoch is over, and the process alive."""
        self._path.unlink(missing_ok=True)


def _end(trial: Trial, holds: Callable[[], bool], checkpoint: Path, tell: Callable[[], None]) -> None:
    """Tell a trial that an evaluation was spent on, and remove what only an unfinished training needs."""
    if not holds():
        return
    try:
        trial.set_user_attr(EVALUATED, True)
        tell()
    except UpdateFinishedTrialError:  # by another, in this very moment
        return
    _sweep(checkpoint.parent, f"{checkpoint.name}*")


def sweep_checkpoints(run: Run) -> None:
    """Remove what a kill left of trainings that were told: to be called when none goes on."""
    _sweep(run.folder / "weights", "*.checkpoint*")


def _sweep(folder: Path, pattern: str) -> None:
    for left in (*folder.glob(pattern), *folder.glob(f".{pattern}")):  # with those that were not yet renamed
        left.unlink(missing_ok=True)


def _train(
    run: Run,
    study: optuna.Study,
    trial: Trial,
    arch: Arch,
    latency: float,
    checkpoint: Path,
    progress: Callable[[int, int], None],
    holds: Callable[[], bool],
) -> tuple[tuple[float, float], dict[str, Any]]:
    """The objectives' values, and what else the trial should say."""
    section, config = run.recipe.train, train_config(run)
    module, distil, step = build(run, arch), None, None
    parent = _parent(run, study, trial) if run.inherits else None
    if parent is not None:
        teacher = trained_network(run, parent)
        inherited = inherit(run.space, parent, teacher, arch, seed=run.recipe.seed)
        module, step = inherited.module, inherited.step
        config = replace(
            config,
            epochs=section.child_epochs or max(1, config.epochs // 2),
            learning_rate=child_rate(section),
            warmup_epochs=0,  # trained weights need none, and short trainings have no epoch to spare
        )
        frozen = 0 if inherited.exact or not inherited.untouched else max(1, config.epochs // 4)
        if section.distil_weight and not inherited.exact:
            distil = Distil(teacher, section.distil_weight, frozen_epochs=frozen, untouched=inherited.untouched)
    stopper = make_stopper(section.stopper, section.stopper_options, config.epochs)
    limit, attempt = TimeLimit(section.timeout_seconds), _Attempt(checkpoint)
    curve: list[float] = list(trial.user_attrs.get(CURVE, ()))

    def after_epoch(done: int, planned: int, facts: dict[str, float]) -> None:
        try:
            attempt.end()
            if not holds():
                raise _Lost
            # told again after a kill, which may have come before
            curve[done - 1 :] = [facts["valid_accuracy"]]
            trial.set_user_attr(CURVE, curve)
            progress(done, planned)
            if done < planned:
                stop_if_hopeless()
        except (_Lost, _Stopped):
            raise
        except Exception as error:
            raise _NotTheNetwork from error
        limit.check(facts["seconds"], f"in epoch {done} of {planned}")
        if done < planned:
            attempt.begin()

    def stop_if_hopeless() -> None:
        begun = _begun(run, study)
        number = [other.number for other, _ in begun].index(trial.number)
        trainings = [training for _, training in begun]
        decision = stopper.decide(trainings[number], trainings, train_objectives(run))
        if decision.stop:
            raise _Stopped(decision.reason)

    if not checkpoint.exists():
        attempt.begin()
    with limit:
        result = train(
            module,
            run.data,
            run.space.input_shape(arch)[1],
            config,
            device=training_device(section.device),
            checkpoint=checkpoint,
            progress=limit.paused(after_epoch),
            max_threads=section.threads,
            distil=distil,
            log_dir=run.folder / "logs" / run.network_name(arch) if section.log else None,
        )
    if not math.isfinite(result.valid_accuracy):
        raise ArithmeticError(f"the accuracy is {result.valid_accuracy}")
    try:
        save_weights(module.cpu(), weights_path(run, arch))  # so that they are read where there is no GPU
        attach(run, trial, weights_path(run, arch))
    except Exception as error:
        raise _NotTheNetwork from error
    facts: dict[str, Any] = asdict(result)
    if step is not None:
        facts["inherited"] = step
    return (result.valid_accuracy, latency), facts


def train_config(run: Run) -> TrainConfig:
    """How the recipe trains a network from scratch."""
    return TrainConfig(**run.recipe.train.model_dump(exclude=_OTHER), seed=run.recipe.seed)


def child_rate(section: TrainSection) -> float:
    """The peak of the learning rate of a network that begins with trained weights.

    At that of the training that they come from it would forget more than it learns in few epochs.
    """
    if section.child_learning_rate is not None:
        return section.child_learning_rate
    return _CHILD_RATE * (section.learning_rate or DEFAULTS[section.optimizer][0])


def _parent(run: Run, study: optuna.Study, trial: Trial) -> Arch | None:
    """The architecture that the trial's was made from, if its weights are there."""
    trials = study.get_trials(deepcopy=False)
    # looked up in the study: a trial that was only just asked for does not show what its sampler noted
    number = trials[trial.number].user_attrs.get(PARENT)
    if number is None:
        return None
    other: FrozenTrial = trials[number]
    arch = parse_arch(other.user_attrs[ARCH])
    return arch if weights_path(run, arch).exists() else None


def _begun(run: Run, study: optuna.Study) -> list[tuple[FrozenTrial, Training]]:
    """All trainings of the run as far as they are, numbered in the order of their beginning."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if CURVE in trial.user_attrs]
    archs = [parse_arch(trial.user_attrs[ARCH]) for trial in trials]
    latencies = run.predictor.predict_ms(np.array(archs)).tolist()
    return [
        (
            trial,
            Training(
                number=number,
                known={"latency": ms},
                curve=tuple(trial.user_attrs[CURVE]),
                finished=trial.state == TrialState.COMPLETE,
                features=one_hot(run.space, arch),
            ),
        )
        for number, (trial, arch, ms) in enumerate(zip(trials, archs, latencies, strict=True))
    ]
