"""The networks of a run as modules: built from the seed, their trained weights on disk, and the front of them.

Weights are in the format safetensors: names, shapes and numbers, no code. Those of runs before it was used are files of
torch (.pt), which are still read, without unpickling anything but tensors.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from hwnas.errors import RunError
from hwnas.precisions import Member, assessed, offered, predicted_ms
from hwnas.run import Run, train_objectives, train_study
from hwnas.scoring import build_seeded
from hwnas.search.pareto import nondominated
from hwnas.search.problem import to_losses
from hwnas.search.study import failed, recorded
from hwnas.space import Arch
from hwnas.train.checkpoint import read_torch

SUFFIX, OLDER_SUFFIX = ".safetensors", ".pt"
_OTHER_BYTES = 2**24  # of a file beside its numbers, at most: names and shapes


def build(run: Run, arch: Arch) -> nn.Module:
    """The network with initial weights that follow from the recipe's seed alone."""
    return build_seeded(run.space, arch, run.recipe.seed)


def trained_network(run: Run, arch: Arch) -> nn.Module:
    """The network with its trained weights. Raises RunError if they cannot be used."""
    module = build(run, arch)
    load_weights(module, weights_path(run, arch))
    return module


def weights_path(run: Run, arch: Arch) -> Path:
    """Where a trained network's weights are, or will be."""
    path = run.folder / "weights" / f"{run.network_name(arch)}{SUFFIX}"
    older = path.with_suffix(OLDER_SUFFIX)
    return older if older.exists() and not path.exists() else path


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's weights as safetensors, the whole file or none; beside an older file of torch, not over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    # Copies, as the format has neither tensors that share memory nor another order of numbers than row-major.
    state = {name: value.clone(memory_format=torch.contiguous_format) for name, value in module.state_dict().items()}
    safetensors.torch.save_file(state, unfinished, metadata={"format": "pt"})
    unfinished.replace(path.with_suffix(SUFFIX))


def load_weights(module: nn.Module, path: Path) -> None:
    """Load weights into a module of the same architecture. Raises RunError if they cannot be used."""
    largest = _OTHER_BYTES + 8 * sum(value.numel() for value in module.state_dict().values())
    try:
        if (size := path.stat().st_size) > largest:
            raise ValueError(f"{size} bytes are too many for this network")
        module.load_state_dict(safetensors.torch.load_file(path) if path.suffix == SUFFIX else read_torch(path))
    except Exception as error:  # zip, pickle, safetensors and torch each raise their own
        raise RunError(
            f"the weights in {path} cannot be used ({type(error).__name__}: {error}); restore them, or begin anew "
            "with: hwnas run --fresh RECIPE"
        ) from error


def trained_front(run: Run) -> list[Arch]:
    """The trained architectures that none beats in both validation accuracy and predicted latency, fastest first."""
    return list(dict.fromkeys(member.arch for member in front_members(run)))


def plainest(run: Run, arch: Arch) -> Member:
    """A trained network in the plainest of the run's precisions, whether or not it is on the front in it."""
    accuracy, latency_ms = recorded(train_study(run))[arch].values
    plain = run.precisions[0]
    if len(run.precisions) > 1:
        latency_ms = predicted_ms(run, arch, plain)
        if plain != "fp32":
            found = assessed(run, arch, plain, partial(trained_network, run, arch))
            accuracy = accuracy if isinstance(found, str) else found.accuracy
    return Member(arch, plain, accuracy, latency_ms)


def front_members(run: Run) -> list[Member]:
    """The front of the trained networks, each in the precisions that it is offered in, fastest first.

    Of several precisions, networks that were not yet assessed in them are assessed now (see `precisions.py`).
    """
    study = train_study(run)
    trials = recorded(study)
    if not trials:
        reasons = "; ".join(sorted(set(failed(study).values()))) or "nothing was trained"
        raise RunError(f"{run.folder} holds no trained network ({reasons}); run: hwnas search RECIPE")
    if len(run.precisions) == 1:
        members = [Member(arch, run.precisions[0], *trial.values) for arch, trial in trials.items()]
    else:
        members = []
        for number, (arch, trial) in enumerate(trials.items()):
            run.progress("assess in every precision", number, len(trials))
            members += offered(run, arch, trial.values[0], partial(trained_network, run, arch))
        run.progress("assess in every precision", len(trials), len(trials))
        if not members:
            raise RunError(f"no network can be in {' or '.join(run.precisions)}; {run.folder}/precisions.json says why")
    values = np.array([[member.accuracy, member.latency_ms] for member in members])
    front = [members[row] for row in np.flatnonzero(nondominated(to_losses(values, train_objectives(run))))]
    return sorted(front, key=lambda member: member.latency_ms)
