"""The model card of a network of a run, from what the run holds: its trials, its table, its recipe."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata

import numpy as np
import torch
from optuna.trial import FrozenTrial

from hwnas import __version__
from hwnas.card import Ancestor, Card, TableUsed, Training
from hwnas.errors import PredictorError
from hwnas.latency.layers import layers_of, other_ms
from hwnas.run import Run, train_study
from hwnas.search.samplers.base import PARENT
from hwnas.search.study import ARCH, recorded
from hwnas.space import Arch, IntMatrix, format_arch
from hwnas.training import CURVE
from hwprof.errors import HwprofError
from hwprof.host import identity
from hwprof.table import LatencyTable

# Of the interval of a prediction.
CONFIDENCE = 0.9
# User attribute of a trial whose training began with its parent's weights: the step in words.
INHERITED = "inherited"
# Packages that what a training yields, or what is exported and measured, depends on.
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "optuna", "onnx", "onnxscript", "onnxruntime")
_PASSWORD = re.compile(r"(://[^:/@\s\"']*):[^\s\"']*@")


def card_of(run: Run, arch: Arch, profiled: Mapping[int, float] | None = None) -> Card:
    """The card of a trained network, without what is to be said of its files.

    `profiled`: position -> ms of its blocks, measured in this network; else they are the latency table's. A card is no
    reason to need a device: where its table cannot be had, the prediction is that of the network's trial. Passwords in
    the recipe's addresses of databases are left out.
    """
    data, space, trial = run.data, run.space, recorded(train_study(run))[arch]
    blocks, matrix, table = space.blocks(arch), np.array([arch]), _table_of(run)
    return Card(
        version=__version__,
        name=run.network_name(arch),
        run=run.recipe.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        space={"name": space.name, **space.config},
        arch=format_arch(arch),
        choice=space.describe(arch),
        target={**asdict(run.target), **(table.fingerprint if table else {})},
        valid_accuracy_percent=trial.values[0],
        predicted_ms=float(run.predictor.predict_ms(matrix)[0]) if table else trial.values[1],
        predicted_interval_ms=predicted_interval(run, matrix) if table else (None, None),
        predicted_confidence=CONFIDENCE,
        macs=sum(block.macs for block in blocks),
        params=sum(block.params for block in blocks),
        data=data.name,
        data_licence=getattr(run.recipe.data, "licence", None),
        classes=data.class_names,
        input={
            "shape": ["batch", *space.input_shape(arch)],
            "scale": "pixels / 255, then (x - mean) / std per channel",
            "mean": list(data.mean),
            "std": list(data.std),
        },
        seed=run.recipe.seed,
        versions=versions(),
        machine=machine(run),
        training=_training(run, trial),
        layers=layers_of(space, table, arch, profiled),
        other_ms=other_ms(space, table, arch),
        table=None if table is None else _table_used(run, table),
        recipe=without_passwords(run.recipe_text),
    )


def predicted_interval(run: Run, matrix: IntMatrix) -> tuple[float, float] | tuple[None, None]:
    """(1, slots) -> the bounds of the prediction in ms; none under a table without networks to calibrate them."""
    try:
        low, high = run.predictor.interval_ms(matrix, CONFIDENCE)
    except PredictorError:
        return None, None
    return float(low[0]), float(high[0])


def without_passwords(text: str) -> str:
    """A text whose addresses of databases keep their users, and lose their passwords."""
    return _PASSWORD.sub(r"\1:***@", text)


def versions() -> dict[str, str]:
    """Versions of what this machine trains and exports with."""
    found = {"hwnas": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # ONNX Runtime has a package of its own for GPUs
            found[name] = metadata.version(name)
    return found


def machine(run: Run) -> dict[str, str]:
    """The machine that trains and exports: its processor, and its GPU if networks are trained on it."""
    facts = {key: value for key, value in identity().items() if key in ("cpu", "cores", "machine", "system")}
    if run.recipe.train.device != "cpu" and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _training(run: Run, trial: FrozenTrial) -> Training:
    facts = trial.user_attrs
    return Training(
        epochs=facts.get("epochs"),
        seconds=facts.get("seconds"),
        train_loss=facts.get("train_loss"),
        test_accuracy_percent=facts.get("test_accuracy"),
        curve=tuple(facts.get(CURVE, ())),
        inherited=facts.get(INHERITED),
        lineage=_lineage(run, trial),
    )


def _lineage(run: Run, trial: FrozenTrial) -> tuple[Ancestor, ...]:
    """The networks whose weights came down to that of a trial, oldest first."""
    trials = train_study(run).get_trials(deepcopy=False)
    found: list[Ancestor] = []
    while INHERITED in trial.user_attrs:
        trial = trials[trial.user_attrs[PARENT]]
        accuracy = trial.values[0] if trial.values else None
        found.append(Ancestor(trial.user_attrs[ARCH], accuracy, trial.user_attrs.get(INHERITED)))
    return tuple(reversed(found))


def _table_of(run: Run) -> LatencyTable | None:
    try:
        return run.table
    except HwprofError:  # it is found by the device, which may be away
        return None


def _table_used(run: Run, table: LatencyTable) -> TableUsed:
    validation = table.validation
    return TableUsed(
        name=run.table_path.name,
        sha256=hashlib.sha256(run.table_path.read_bytes()).hexdigest(),
        rows=len(table.rows),
        held_out=validation.models if validation else None,
        mean_error=validation.mean_error if validation else None,
        max_error=validation.max_error if validation else None,
        noise_floor=validation.noise_floor if validation else None,
    )
