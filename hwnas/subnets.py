"""A network with a supernet's weights: trained on as the recipe says, saved, and a trial like any other."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import nn

from hwnas.errors import DataError, MissingPackageError, RunError
from hwnas.run import Run, train_study
from hwnas.search.study import failed, record_failure, record_trial, recorded
from hwnas.space import Arch
from hwnas.train.device import training_device
from hwnas.train.loop import train
from hwnas.trained import save_weights, weights_path
from hwnas.training import child_rate, train_config


def known_subnets(run: Run) -> set[Arch]:
    """What is not to be done again: the architectures that were recorded, and those that failed."""
    return {*recorded(train_study(run)), *failed(train_study(run))}


def require_one(run: Run) -> None:
    """Raise RunError, with the reasons, if every network failed."""
    if (reasons := failed(train_study(run))) and not recorded(train_study(run)):
        raise RunError(
            f"all {len(reasons)} trainings failed: {'; '.join(sorted(set(reasons.values())))}; mend that and begin "
            "anew with --fresh"
        )


def record_subnet(run: Run, arch: Arch, network: nn.Module, shared_accuracy: float, **facts: Any) -> None:
    """Train `network` on for the recipe's `supernet.fine_tune` epochs, save its weights and record its trial.

    `shared_accuracy` in percent is that with the supernet's weights, on the validation images; `facts` are noted in the
    trial, too. A training that was killed goes on at its last epoch; one that fails is a failed trial with its reason.
    """
    epochs = run.recipe.supernet.fine_tune
    facts["shared_accuracy"] = shared_accuracy
    accuracy = shared_accuracy
    checkpoint = weights_path(run, arch).with_suffix(".checkpoint")
    if epochs:
        # trained weights need no warming up, and a short training has no epoch to spare
        config = replace(train_config(run), epochs=epochs, learning_rate=child_rate(run.recipe.train), warmup_epochs=0)
        name = run.network_name(arch)
        try:
            result = train(
                network,
                run.data,
                run.space.input_shape(arch)[1],
                config,
                device=training_device(run.recipe.train.device),
                checkpoint=checkpoint,
                progress=lambda done, planned, _: run.progress(f"fine-tune {name}", done, planned),
                max_threads=run.recipe.train.threads,
                log_dir=run.folder / "logs" / name if run.recipe.train.log else None,
            )
        except (DataError, MissingPackageError, OSError):  # no other network would fare better
            raise
        except Exception as error:  # whatever a network, a kernel or a device may raise
            record_failure(train_study(run), run.space, arch, f"{type(error).__name__}: {error}")
            checkpoint.unlink(missing_ok=True)
            return
        facts |= asdict(result)
        accuracy = result.valid_accuracy
    save_weights(network.cpu(), weights_path(run, arch))
    latency_ms = float(run.predictor.predict_ms(np.array([arch]))[0])
    record_trial(train_study(run), run.space, arch, (accuracy, latency_ms), facts)
    checkpoint.unlink(missing_ok=True)
