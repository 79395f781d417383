"""From a supernet to a front: train it once, learn what its subnets are worth, search under this target's latency.

runs/<name>/supernet/training.checkpoint   while it is trained
runs/<name>/supernet/supernet.safetensors  its weights
runs/<name>/supernet/subnets.json          accuracies of subnets, with what they are accuracies of
runs/<name>/supernet/accuracy.json         the model of accuracy that was fitted to them

Only the first target pays for the training: a recipe that names another run in `supernet.trained` takes its weights and
its accuracies, and needs seconds. The members of the front are trials like any other: evaluated with the weights that
they share, trained on for some epochs if the recipe says so, exported, measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import with_config
from torch import nn

from hwnas.confirm import above_limit
from hwnas.errors import RunError
from hwnas.limits import known_limits
from hwnas.run import Run, train_objectives
from hwnas.saved import EXACT, from_text, to_text
from hwnas.search.accuracy import CANDIDATES, LEAST_ROWS, AccuracyPredictor
from hwnas.search.accuracy_file import accuracy_from_json, accuracy_to_json
from hwnas.search.inner import nsga2, select_spread
from hwnas.search.pareto import nondominated
from hwnas.search.problem import FloatMatrix, FloatVector, to_losses
from hwnas.space import Arch, IntMatrix, format_arch, parse_arch, rows_of
from hwnas.subnets import known_subnets, record_subnet, require_one
from hwnas.supernet.elastic import Supernet
from hwnas.supernet.extremes import largest_arch, smallest_arch
from hwnas.supernet.images import SupernetImages
from hwnas.supernet.recalibrate import recalibrate
from hwnas.supernet.stages import StageSampler, everything_free
from hwnas.supernet.train import SupernetConfig, train_supernet
from hwnas.train.device import training_device
from hwnas.train.loop import evaluate
from hwnas.trained import load_weights, save_weights
from hwprof.files import write_atomic

WEIGHTS, CHECKPOINT = "supernet.safetensors", "training.checkpoint"
_AT_THE_FRONT = 0.25  # share of the evaluated subnets that are members of the front that the others foretell
_POPULATION, _GENERATIONS = 100, 200


@with_config(EXACT)
@dataclass(frozen=True)
class Subnets:
    """Validation accuracies in percent of subnets, by architecture as text, and what of: space, data, training."""

    of: dict[str, Any]
    accuracies: dict[str, float]


def search_supernet(run: Run) -> None:
    """Train the run's supernet unless it is there, and record the members of its front as trials.

    Raises InfeasibleError if nothing keeps the limits, RunError if a supernet of another run does not fit this one, or
    if every network failed that was trained on.
    """
    if known_limits(run) and not (_folder(run) / WEIGHTS).exists():
        # what cannot be kept is said before hours of training: whatever accuracies will be, here they are all the same
        _predicted_front(run, lambda archs: np.zeros(len(archs)))
    weights = _SharedWeights(run)
    model = weights.accuracy_model()
    chosen, known = _front(run, model), known_subnets(run)
    for number, arch in enumerate(chosen):
        run.progress("evaluate the front", number, len(chosen))
        if arch not in known:
            record_subnet(run, arch, weights.network(arch), weights.accuracy(arch))
    run.progress("evaluate the front", len(chosen), len(chosen))
    require_one(run)


def train_member(run: Run, arch: Arch) -> None:
    """Train the run's supernet unless it is there, and record one of its networks as a trial.

    Raises RunError if that is trained on and fails.
    """
    weights = _SharedWeights(run)
    if arch not in known_subnets(run):
        record_subnet(run, arch, weights.network(arch), weights.accuracy(arch))
    require_one(run)


def help_train(run: Run) -> None:
    """What processes of torchrun but the first do for a run: train the supernet with it, and nothing else."""
    if run.recipe.supernet.trained is None and not (_folder(run) / WEIGHTS).exists():
        _train(run, Supernet(run.space, seed=run.recipe.seed))


def accuracy_note(run: Run) -> str | None:
    """How well accuracy is predicted, in words; None if the run has no such model."""
    path = _folder(run) / "accuracy.json"
    if not path.exists():
        return None
    model = accuracy_from_json(path.read_text(encoding="utf-8"), space=run.space, source=str(path))
    seen = model.held_out
    return (
        f"accuracy is predicted from {len(model.archs)} evaluated subnets ({model.chosen}): on held-out ones off by "
        f"{seen.rmse:.2f} points (root mean square), rank correlations {seen.kendall:.2f} (Kendall) and "
        f"{seen.spearman:.2f} (Spearman)"
    )


def _folder(run: Run) -> Path:
    """Where the supernet is that the run uses: its own, or another run's."""
    trained = run.recipe.supernet.trained
    return (run.folder if trained is None else Path(trained)) / "supernet"


class _SharedWeights:
    """A run's supernet with its images, and the accuracies of its subnets as far as they are known."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.folder = _folder(run)
        self._device = training_device(run.recipe.train.device)
        self.net = Supernet(run.space, seed=run.recipe.seed)
        self.images = SupernetImages(run.data, run.space, self._device)
        self._path = self.folder / WEIGHTS
        self._of = {
            "space": json.loads(json.dumps({"name": run.space.name, **run.space.config})),
            "data": run.data.name,
            # another split would validate on images that the supernet was trained on
            "split": [run.recipe.seed, run.recipe.data.valid_fraction],
        }
        if run.recipe.supernet.trained is None and not self._path.exists():
            _train(run, self.net)
            save_weights(self.net.cpu(), self._path)
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self._known = self._read()
        if not self._path.exists():
            raise RunError(f"{self._path} is not there: train that supernet first, with: hwnas search RECIPE")
        load_weights(self.net, self._path)
        self.net.to(self._device)

    def network(self, arch: Arch) -> nn.Module:
        """The subnet as a network of its own, with statistics of its own."""
        return recalibrate(self.net.extract(arch), self.images.calibration(arch))

    def accuracy(self, arch: Arch) -> float:
        """Validation accuracy in percent with shared weights."""
        if arch in self._known:
            return self._known[arch]
        data, size = self._run.data, self._run.space.input_shape(arch)[1]
        return evaluate(self.network(arch), data.x_valid, data.y_valid, data.mean, data.std, size)

    def accuracy_model(self) -> AccuracyPredictor:
        """A model of the subnets' accuracies: random ones first, then those that it thinks are on the front."""
        run, path = self._run, self.folder / "accuracy.json"
        if path.exists():
            return accuracy_from_json(path.read_text(encoding="utf-8"), space=run.space, source=str(path))
        wanted = run.recipe.supernet.evaluations
        first = max(LEAST_ROWS, wanted - round(_AT_THE_FRONT * wanted))
        self._evaluate(self._random(first), first)
        if len(self._known) < wanted:
            # by the first ones alone, so that a killed search goes on with the same front
            some = list(self._known)[:first]
            new = [arch for arch in rows_of(_predicted_front(run, self._fitted(some).predict)) if arch not in some]
            rows = np.linspace(0, len(new) - 1, min(len(new), wanted - first)).round().astype(int)
            self._evaluate([new[row] for row in rows], wanted)
        run.progress("evaluate subnets", len(self._known), len(self._known))  # fewer, if some came twice
        model = self._fitted(list(self._known))
        write_atomic(path, accuracy_to_json(model))
        return model

    def _evaluate(self, archs: list[Arch], wanted: int) -> None:
        for arch in archs:
            if len(self._known) >= wanted or arch in self._known:
                continue
            self._run.progress("evaluate subnets", len(self._known), self._run.recipe.supernet.evaluations)
            self._known[arch] = self.accuracy(arch)
            self._write()

    def _random(self, n: int) -> list[Arch]:
        """The ends of the space, and others that lie evenly over latency: where all are drawn alike, most are alike."""
        space = self._run.space
        draw = StageSampler(space, everything_free(), self._run.predictor.predict_ms)
        rng = np.random.default_rng((self._run.recipe.seed, n))
        return [largest_arch(space), smallest_arch(space), *rows_of(draw(2 * n, rng))]  # some come twice

    def _fitted(self, archs: list[Arch]) -> AccuracyPredictor:
        accuracies = np.array([self._known[arch] for arch in archs])
        matrix = np.array(archs, dtype=np.int64)
        # those that predict fast enough for an inner search
        fast = [name for name in CANDIDATES if "trees" not in name]
        return AccuracyPredictor.fit(self._run.space, matrix, accuracies, seed=self._run.recipe.seed, candidates=fast)

    def _read(self) -> dict[Arch, float]:
        path = self.folder / "subnets.json"
        if not path.exists():
            return {}
        found = from_text(Subnets, path.read_text(encoding="utf-8"), RunError, str(path))
        different = [key for key, value in self._of.items() if found.of.get(key) != value]
        if different:
            key = different[0]
            theirs, ours = _differing(found.of.get(key), self._of[key])
            raise RunError(
                f"the supernet in {self.folder} is of another {key}: {theirs} instead of {ours}; "
                "give both recipes the same [space] and [data], or train one for this recipe"
            )
        return {parse_arch(name): accuracy for name, accuracy in found.accuracies.items()}

    def _write(self) -> None:
        named = {format_arch(arch): accuracy for arch, accuracy in self._known.items()}
        write_atomic(self.folder / "subnets.json", to_text(Subnets(self._of, named), RunError, "subnets.json"))


def _differing(theirs: Any, ours: Any) -> tuple[Any, Any]:
    """Of two tables only what differs; anything else as it is."""
    if not isinstance(theirs, dict) or not isinstance(ours, dict) or theirs.get("name") != ours.get("name"):
        return theirs, ours
    keys = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
    return {key: theirs.get(key) for key in keys}, {key: ours.get(key) for key in keys}


def _train(run: Run, net: Supernet) -> None:
    """Train a supernet as the recipe says; it goes on from its checkpoint."""
    section = run.recipe.supernet
    rate = {} if section.learning_rate is None else {"learning_rate": section.learning_rate}
    config = SupernetConfig(
        method=section.method,
        epochs=section.epochs,
        minutes=section.minutes,
        batch_size=run.recipe.train.batch_size,
        augment=run.recipe.train.augment,
        mix=run.recipe.train.mix,
        ema=run.recipe.train.ema,
        seed=run.recipe.seed,
        **rate,
    )
    train_supernet(
        net,
        run.data,
        config,
        latency_ms=run.predictor.predict_ms if section.sampling == "latency" else None,
        device=training_device(run.recipe.train.device),
        checkpoint=_folder(run) / CHECKPOINT,
        progress=lambda stage, done, of, facts: run.progress(stage, done, of),
        max_threads=run.recipe.train.threads,
        log_dir=run.folder / "logs" / "supernet" if run.recipe.train.log else None,
    )


def _predicted_front(run: Run, predict: Callable[[IntMatrix], FloatVector]) -> IntMatrix:
    """(n, slots) the front of predicted accuracy and latency within the limits, fastest first."""
    limits = [(limit, quantity) for limit, quantity in known_limits(run) if limit.name != "latency"]
    accuracy, latency = train_objectives(run)
    objectives = [accuracy, *(limit for limit, _ in limits), latency]

    def evaluate_archs(archs: IntMatrix) -> FloatMatrix:
        columns = [predict(archs), *(quantity(archs) for _, quantity in limits), run.searched_ms(archs)]
        return np.stack(columns, axis=1)

    found = nsga2(
        run.space,
        evaluate_archs,
        objectives,
        population=_POPULATION,
        generations=_GENERATIONS,
        seed=run.recipe.seed,
    )
    kept = nondominated(to_losses(found.values[:, [0, -1]], [accuracy, latency]))
    return found.archs[kept]


def _front(run: Run, model: AccuracyPredictor) -> list[Arch]:
    """As many members of the front as the recipe wants networks, spread over it, none measured above the limit."""
    front = _predicted_front(run, model.predict)
    slow: set[Arch] = set()
    while True:
        left = [arch for arch in rows_of(front) if arch not in slow]
        if not left:
            raise RunError("every network of the front was measured above the limit; relax search.latency")
        matrix = np.array(left, dtype=np.int64)
        values = np.stack([model.predict(matrix), run.predictor.predict_ms(matrix)], axis=1)
        chosen = [left[row] for row in select_spread(values, run.recipe.search.trainings)]
        above = above_limit(run, chosen)
        if not above:
            return chosen
        slow |= set(above)
