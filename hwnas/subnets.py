"""A network with a supernet's weights: trained on as the recipe says, saved, and a trial like any other."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import nn

from hwnas.run import Run, train_study
from hwnas.search.study import record_trial
from hwnas.space import Arch
from hwnas.train.device import training_device
from hwnas.train.loop import train
from hwnas.trained import save_weights, weights_path
from hwnas.training import child_rate, train_config


def record_subnet(run: Run, arch: Arch, network: nn.Module, shared_accuracy: float, **facts: Any) -> None:
    """Train `network` on for the recipe's `supernet.fine_tune` epochs, save its weights and record its trial.

    `shared_accuracy` in percent is that with the supernet's weights, on the validation images; `facts` are noted in the
    trial, too. A training that was killed goes on at its last epoch.
    """
    epochs = run.recipe.supernet.fine_tune
    facts["shared_accuracy"] = shared_accuracy
    accuracy = shared_accuracy
    checkpoint = weights_path(run, arch).with_suffix(".checkpoint")
    if epochs:
        # trained weights need no warming up, and a short training has no epoch to spare
        config = replace(train_config(run), epochs=epochs, learning_rate=child_rate(run.recipe.train), warmup_epochs=0)
        result = train(
            network,
            run.data,
            run.space.input_shape(arch)[1],
            config,
            device=training_device(run.recipe.train.device),
            checkpoint=checkpoint,
            progress=lambda done, planned, _: run.progress(f"fine-tune {run.network_name(arch)}", done, planned),
            max_threads=run.recipe.train.threads,
        )
        facts |= asdict(result)
        accuracy = result.valid_accuracy
    save_weights(network.cpu(), weights_path(run, arch))
    latency_ms = float(run.predictor.predict_ms(np.array([arch]))[0])
    record_trial(train_study(run), run.space, arch, (accuracy, latency_ms), facts)
    checkpoint.unlink(missing_ok=True)
