"""The run folder, and what a recipe's run is made of.

runs/<name>/recipe.toml      what was run, as text
runs/<name>/journal.log      Optuna studies: "score" (zero-shot) and "train" (the trained networks)
runs/<name>/studies          their names, if they are in a storage that other runs use, too
runs/<name>/artifacts/       links to files of trials, for optuna-dashboard
runs/<name>/weights/         a file for each trained network
runs/<name>/precisions.json  the trained networks in the precisions of the recipe, if there are several
runs/<name>/export/          an ONNX file and its JSON for each network of the front
runs/<name>/summary.json     what the report shows
runs/<name>/report.html
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler

from hwnas.errors import RunError
from hwnas.latency.fastest import FastestPredictor
from hwnas.latency.fewshot import TransferPredictor, make_predictor
from hwnas.latency.index import BlockIndex
from hwnas.latency.predict import TablePredictor
from hwnas.progress import Progress, silent
from hwnas.recipe import Recipe, changed_keys, load_recipe
from hwnas.saved import numbers_from_text
from hwnas.search.problem import FloatVector, Objective
from hwnas.search.samplers import make_sampler
from hwnas.search.storage import shared_name
from hwnas.search.study import open_study
from hwnas.space import Arch, IntMatrix, SearchSpace, format_arch
from hwnas.spaces import make_space, space_arguments
from hwnas.train.data import ImageData, load_data
from hwprof.client import AgentClient
from hwprof.devices import Device, make_devices
from hwprof.errors import TableError
from hwprof.farm import first_reachable
from hwprof.files import write_atomic
from hwprof.host import device_slug
from hwprof.table import LatencyTable, read_table
from hwprof.target import Plan, Target

SURROGATE = "surrogate"


class Run:
    """A recipe's run: what it is made of is loaded when it is first asked for.

    Raises RunError if the folder holds a run of another recipe.
    """

    def __init__(
        self, recipe: Recipe, recipe_text: str, *, progress: Progress = silent, whole: Run | None = None
    ) -> None:
        self.recipe, self.recipe_text, self.progress = recipe, recipe_text, progress
        self.folder: Path = recipe.folder if whole is None else whole.folder
        self._whole, self._parts = whole, dict[str, Run]()

    def open_folder(self) -> None:
        """Make the run folder, or check that the one that is there belongs to this recipe."""
        path = self.folder / "recipe.toml"
        if path.exists():
            changed = changed_keys(load_recipe(path), self.recipe)
            if changed:
                raise RunError(
                    f"{self.folder} holds a run of another recipe ({', '.join(changed)} changed); "
                    "give this one another name, or move the old run away with --fresh"
                )
        else:
            write_atomic(path, self.recipe_text)

    def move_away(self) -> Path | None:
        """Rename an existing run folder, so that the run begins anew and nothing is lost; its new path."""
        return move_aside(self.folder) if self.folder.exists() else None

    @property
    def precisions(self) -> tuple[str, ...]:
        """The recipe's, the plainest first."""
        return self.recipe.target.precisions

    def at(self, precision: str) -> Run:
        """The run in one of its precisions: the same folder, data and space, with a target and a table of its own."""
        if self.precisions == (precision,):
            return self
        if precision not in self._parts:
            recipe = self.recipe.at(precision)
            self._parts[precision] = Run(recipe, self.recipe_text, progress=self.progress, whole=self)
        return self._parts[precision]

    @cached_property
    def data(self) -> ImageData:
        if self._whole is not None:
            return self._whole.data
        section = self.recipe.data
        size = section.image_size
        if size is None and section.source.startswith("folder:"):
            size = self._make_space(2, 3).largest_input[1]  # its files may differ in size; nothing larger is of use
        return load_data(
            section.source,
            root=Path(section.root),
            image_size=size,
            valid_fraction=section.valid_fraction,
            seed=self.recipe.seed,
        )

    @cached_property
    def space(self) -> SearchSpace:
        """The search space; classes and channels come from the data unless the recipe gives them."""
        if self._whole is not None:
            return self._whole.space
        given = self.recipe.space.arguments()
        if {"num_classes", "in_channels"} <= set(given):
            return make_space(self.recipe.space.name, given)
        return self._make_space(self.data.num_classes, self.data.channels)

    def _make_space(self, num_classes: int, in_channels: int) -> SearchSpace:
        known = space_arguments(self.recipe.space.name)
        from_data = {"num_classes": num_classes, "in_channels": in_channels}
        derived = {key: value for key, value in from_data.items() if key in known}
        return make_space(self.recipe.space.name, {**derived, **self.recipe.space.arguments()})

    @cached_property
    def target(self) -> Target:
        """The target, of several precisions in the plainest."""
        return self.recipe.target.target()

    @cached_property
    def plan(self) -> Plan:
        """How carefully this run measures."""
        return Plan(cool_down_seconds=self.recipe.profile.cool_down_seconds)

    @cached_property
    def devices(self) -> dict[str, Device]:
        """The target's devices, of one kind, by their texts."""
        return make_devices(self.target.device)

    @cached_property
    def device(self) -> Device:
        """The first of the target's devices that can be reached."""
        return first_reachable(self.devices, self.target)

    @cached_property
    def table_path(self) -> Path:
        """The table that the recipe names, or that of this space on the machine that the target's device is now."""
        if len(self.precisions) > 1:
            return self.at(self.precisions[0]).table_path
        if self.recipe.tables:
            return Path(self.recipe.tables[0])
        return Path(self.recipe.profile.tables) / device_slug(self.fingerprint) / self._table_name

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """The target's machine and runtime as they are now. Raises DeviceError if the device cannot be reached."""
        with AgentClient(self.device, self.target) as client:
            return client.fingerprint

    @property
    def _table_name(self) -> str:
        space = json.dumps([self.space.name, dict(self.space.config)], sort_keys=True)
        networks = self.recipe.profile.networks
        quick = f"-quick{networks}" if networks else ""
        digest = hashlib.sha256(space.encode()).hexdigest()[:8]
        return f"{self.target.slug()}-{self.space.name}-{digest}{quick}.json"

    @cached_property
    def table(self) -> LatencyTable:
        """The latency table. Raises TableError if it is not there, damaged, of another target, or of an emulator."""
        table = read_table(self.table_path)
        table.require_target(self.target)
        if "emulated" in table.fingerprint and not self.recipe.profile.emulated:
            raise TableError(
                f"{self.table_path} was measured in an emulator ({table.fingerprint['emulated']}), whose times say "
                "nothing about a device: profile the device, or set profile.emulated = true to try out the path"
            )
        return table

    @cached_property
    def predictor(self) -> TablePredictor | TransferPredictor | FastestPredictor:
        """Of several precisions, a network's latency in that in which it is fastest."""
        if len(self.precisions) > 1:
            return FastestPredictor([self.at(precision).predictor for precision in self.precisions])
        return make_predictor(self.space, self.table, self.table_path.parent)

    def searched_ms(self, archs: IntMatrix) -> FloatVector:
        """(n, slots) -> (n,) the latency that is searched and limited: predicted, or its upper bound."""
        confidence = self.recipe.search.confidence
        return self.predictor.predict_ms(archs) if confidence is None else self.predictor.upper_ms(archs, confidence)

    @cached_property
    def index(self) -> BlockIndex:
        return self.predictor.index

    @property
    def inherits(self) -> bool:
        """Whether networks begin with the weights of those that they were made of."""
        given = self.recipe.train.inherit
        return self.recipe.search.sampler == "lemonade" if given is None else given

    def network_name(self, arch: Arch) -> str:
        """A short name for files and tables, the same in every run."""
        return f"net-{hashlib.sha256(format_arch(arch).encode()).hexdigest()[:6]}"

    def label(self, arch: Arch) -> str:
        """The network's name in reports; with its precision, where that is not the plainest of several."""
        plain = self._whole is None or self.target.precision == self._whole.precisions[0]
        return self.network_name(arch) + ("" if plain else f".{self.target.precision}")

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the stage's seconds to the run's record, also when it is interrupted."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.seconds()
            seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - begin, 1)
            write_atomic(self.folder / "seconds.json", json.dumps(seconds) + "\n")

    def seconds(self) -> dict[str, float]:
        """Wall seconds spent so far, by stage."""
        path, advice = self.folder / "seconds.json", "delete it, it only holds the seconds spent so far"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError as error:
            raise RunError(f"{path} is damaged ({error}); {advice}") from error
        found = numbers_from_text(text, RunError, str(path), advice)
        return {stage: spent for stage, spent in found.items() if spent is not None}


def move_aside(path: Path) -> Path:
    """Rename a file or folder to the first free of NAME.1, NAME.2, ...; its new path."""
    for number in range(1, 10_000):
        target = path.with_name(f"{path.name}.{number}")
        if not target.exists():
            return path.rename(target)
    raise RunError(f"{path} has been moved aside 9999 times; delete some of them")


def train_objectives(run: Run) -> tuple[Objective, Objective]:
    """What trained networks are compared by."""
    return Objective("accuracy", "%", "maximize"), _latency_objective(run)


def score_objectives(run: Run) -> tuple[Objective, Objective]:
    """What untrained networks are compared by."""
    score = run.recipe.search.score
    return Objective(score if isinstance(score, str) else " + ".join(score), "", "maximize"), _latency_objective(run)


def _latency_objective(run: Run) -> Objective:
    return Objective("latency", "ms", "minimize", run.recipe.search.latency)


def score_study(run: Run) -> optuna.Study:
    """The study of the zero-shot scores."""
    section = run.recipe.search
    sampler = None if section.score_sampler == SURROGATE else make_sampler(section.score_sampler, run.recipe.seed)
    return _study(run, "score", score_objectives(run), sampler)


def train_study(run: Run) -> optuna.Study:
    """The study of the trained networks."""
    return _study(run, "train", train_objectives(run))


def _study(run: Run, name: str, objectives: Sequence[Objective], sampler: BaseSampler | None = None) -> optuna.Study:
    storage = run.recipe.search.storage
    if storage is None:
        return open_study(run.folder / "journal.log", name, objectives, sampler)
    return open_study(storage, f"{shared_name(run.folder)}:{name}", objectives, sampler)
