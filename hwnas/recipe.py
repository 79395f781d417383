"""Recipes: a TOML file that says what to profile, search, train and export, checked before anything runs.

Every key has a default and a unit in its name or its value; an unknown key, a wrong type or a wrong unit is one message
that names the key, the value and what is accepted.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from hwnas.errors import RecipeError
from hwnas.zeroshot import score_names
from hwprof.errors import HwprofError
from hwprof.runtimes import RUNTIMES, require_runnable
from hwprof.target import Target, target_from_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
# Keys that say where a run computes, which may change while it goes on.
_WHERE = {"search.executor", "search.workers", "search.gpus"}


def parse_ms(value: object) -> float:
    """Milliseconds from text like '2 ms', '800 us' or '0.01 s'. Raises ValueError on anything else."""
    return _parse(value, _MILLISECONDS, "a time", "2 ms")


def parse_count(value: object) -> float:
    """A count from a number, or text like '20 M' or '400k'. Raises ValueError on anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value}"
    return _parse(value, _COUNTS, "a count", "20 M")


def parse_bytes(value: object) -> float:
    """Bytes from text like '2 MB' or '500 kB'. Raises ValueError on anything else."""
    return _parse(value, _BYTES, "a size", "2 MB")


def _parse(value: object, units: Mapping[str, float], what: str, example: str) -> float:
    match = (
        re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Zµ]*)\s*", value)
        if isinstance(value, str)
        else None
    )
    if match is None or (not match.group(2) and "" not in units):
        raise ValueError(f'write a number with its unit, like "{example}"')
    number, unit = float(match.group(1)), match.group(2).replace("µs", "us")
    if unit not in units:
        *most, last = [each for each in units if each]
        raise ValueError(f"the unit {unit!r} is not {what}; use {', '.join(most)} or {last}")
    if number <= 0:
        raise ValueError("must be above zero")
    return number * units[unit]


Milliseconds = Annotated[float, BeforeValidator(parse_ms), PlainSerializer(lambda ms: f"{ms:g} ms")]
Count = Annotated[float, BeforeValidator(parse_count), PlainSerializer(lambda count: f"{count:g}")]
Bytes = Annotated[float, BeforeValidator(parse_bytes), PlainSerializer(lambda size: f"{size:g} B")]


def _as_float(value: Any) -> Any:
    """A whole number is a number, too, which strict types would refuse."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TargetSection(_Section):
    """[target]: the device (or several of one kind, profiled together) and the runtime that the networks are for."""

    device: str | list[str] = "local"
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    batch: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    optimisation: str = "all"

    def target(self) -> Target:
        """The target as hwprof knows it. Raises TargetError for a precision that its runtime does not have."""
        devices = self.device if isinstance(self.device, str) else ", ".join(self.device)
        target = target_from_json({**self.model_dump(), "device": devices})
        if target.runtime in RUNTIMES:  # others cannot be measured from here, but tables of them can be searched under
            require_runnable(target)
        return target


class SpaceSection(_Section):
    """[space]: name of a search space; every other key is an argument of that space."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "mobilenetv3"

    def arguments(self) -> dict[str, Any]:
        """The space's own arguments."""
        return dict(self.__pydantic_extra__ or {})


class DataSection(_Section):
    """[data]: images and labels (see hwnas.train.data)."""

    source: str = "digits"
    root: str = "data"
    image_size: int | None = Field(default=None, ge=1)
    valid_fraction: float = Field(default=0.1, gt=0, lt=1)


class ProfileSection(_Section):
    """[profile]: how much is measured, and where tables are kept.

    `cool_down_seconds` is how long a group may wait until the device has cooled down (phones, boards without a fan).
    Times of an emulator say nothing about a device: a table of one is only searched under if `emulated` allows it.
    """

    tables: str = "latency_tables"
    table: str | None = None
    networks: int = Field(default=0, ge=0)
    fit: int | None = Field(default=None, ge=3)
    held_out: int | None = Field(default=None, ge=9)  # the interval of a prediction, 90%, needs nine
    cool_down_seconds: float = Field(default=0, ge=0, le=3600)
    emulated: bool = False

    @field_validator("cool_down_seconds", mode="before")
    @classmethod
    def _whole_seconds_are_seconds(cls, value: Any) -> Any:
        return _as_float(value)


class SearchSection(_Section):
    """[search]: what is searched for, and how long.

    `trainings` networks are trained, asked of the `sampler` in batches of `batch`: ours by name ("surrogate",
    "lemonade", "evolution", "local", "random"), or any sampler of Optuna by the name of its class, with
    `sampler_options`. The surrogate first scores `evaluations` networks without training them, which `score_sampler`
    chooses; so does a search that trains none. `latency` (predicted), `macs`, `params` and `size` (of the weights in
    the target's precision) are hard limits: what breaks them is not evaluated.

    `score`: "combined", a score's name, or several to be combined. Scores are means over `score_draws` of the initial
    weights, each on `score_batch` images. The largest networks of the space are scored at `score_resolution` pixels,
    unless they are smaller, the others in proportion; in `workers` processes (None: as many as there are cores, if it
    takes long enough). None of it changes how networks are trained.

    `executor`: networks are trained one after another in this process ("local"), in `workers` processes of this machine
    ("processes"), or in as many on a Ray cluster ("ray"; None: as many as there is room for), each with `gpus` of a
    GPU. `storage`: where the trials are kept, if not in the run folder's journal (see hwnas.search.storage).

    With a `confidence` the latency limit holds for the upper bound of a prediction: a measurement keeps it with that
    probability.
    """

    latency: Milliseconds | None = None
    confidence: float | None = Field(default=None, gt=0, lt=1)
    score: str | list[str] = "combined"
    macs: Count | None = None
    params: Count | None = None
    size: Bytes | None = None
    sampler: str = "surrogate"
    sampler_options: dict[str, Any] = {}
    trainings: int = Field(default=5, ge=1)
    batch: int = Field(default=5, ge=1)
    score_sampler: str = "surrogate"
    evaluations: int = Field(default=120, ge=8)
    score_batch: int = Field(default=16, ge=2)
    score_draws: int = Field(default=4, ge=1)
    score_resolution: int = Field(default=48, ge=8)
    workers: int | None = Field(default=None, ge=1)
    executor: Literal["local", "processes", "ray"] = "local"
    gpus: float = Field(default=0, ge=0, le=1)
    storage: str | None = None

    @field_validator("gpus", mode="before")
    @classmethod
    def _a_whole_gpu_is_one(cls, value: Any) -> Any:
        return _as_float(value)

    @field_validator("storage")
    @classmethod
    def _the_storage_is_one(cls, value: str | None) -> str | None:
        from hwnas.search.storage import check_url

        try:
            return None if value is None else check_url(value)
        except RecipeError as error:
            raise ValueError(str(error)) from None

    @field_validator("score")
    @classmethod
    def _every_score_is_known(cls, value: str | list[str]) -> str | list[str]:
        try:
            score_names(value)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _a_confidence_is_that_of_a_limit(self) -> SearchSection:
        if self.confidence is not None and self.latency is None:
            raise ValueError("a confidence says how surely the latency limit is kept; give search.latency too")
        return self


class TrainSection(_Section):
    """[train]: how networks are trained (see hwnas.train.loop), and on what they are trained and scored.

    `inherit`: a network that the sampler made of another begins with its weights and trains `child_epochs` (None: half
    of `epochs`) at `child_learning_rate` (at its peak; None: half of that of others); where the step does not keep the
    function, it also learns from its parent with `distil_weight`. None: with the sampler "lemonade". A `stopper` ends
    trainings that are not worth their rest (see hwnas.search.fidelity); one that takes longer than `timeout_seconds`
    has failed.
    """

    epochs: int = Field(default=12, ge=1)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float | None = Field(default=None, gt=0)
    augment: Literal["none", "crop", "crop_flip"] = "crop"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    max_seconds: float | None = Field(default=None, gt=0)
    timeout_seconds: float | None = Field(default=None, gt=0)
    inherit: bool | None = None
    child_epochs: int | None = Field(default=None, ge=1)
    child_learning_rate: float | None = Field(default=None, gt=0)
    distil_weight: float = Field(default=0.5, ge=0, le=1)
    stopper: str = "none"
    stopper_options: dict[str, Any] = {}
    threads: int | None = Field(default=None, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator(
        "learning_rate", "child_learning_rate", "max_seconds", "timeout_seconds", "distil_weight", mode="before"
    )
    @classmethod
    def _whole_numbers_are_numbers(cls, value: Any) -> Any:
        return _as_float(value)

    @model_validator(mode="after")
    def _the_stopper_can_be_made(self) -> TrainSection:
        from hwnas.search.fidelity import make_stopper

        try:
            make_stopper(self.stopper, self.stopper_options, self.epochs)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return self


class Recipe(_Section):
    """A whole recipe. `runs` is the folder in which the run's own folder, named like the recipe, is made."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(default=0, ge=0)
    runs: str = "runs"
    target: TargetSection = TargetSection()
    space: SpaceSection = SpaceSection()
    data: DataSection = DataSection()
    profile: ProfileSection = ProfileSection()
    search: SearchSection = SearchSection()
    train: TrainSection = TrainSection()

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.runs) / self.name


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises RecipeError with the key, the value and the fix."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}; write one with: hwnas new {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, source: str = "the recipe") -> Recipe:
    """A recipe from its TOML text; `source` names it in errors."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{source} is not valid TOML: {error}") from error
    try:
        recipe = Recipe.model_validate(values)
        recipe.target.target()
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(source, dict(problem)) for problem in error.errors())) from None
    except HwprofError as error:
        raise RecipeError(f"{source}: {error}") from error
    return recipe


def _explain(source: str, problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    value = problem["input"]
    if problem["type"] == "missing":
        return f"{source}: the key {key} is missing"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{source}: unknown key {key} = {value!r}; {hint}"
    message = re.sub("^Value error, ", "", str(problem["msg"]))
    return f"{source}: {key} = {value!r}: {message[0].lower()}{message[1:]}"


def _known_keys(path: tuple[Any, ...]) -> list[str]:
    section: Any = Recipe
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ, those aside that say where a run computes and not what."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return sorted(key for key in {*before, *after} - _WHERE if before.get(key) != after.get(key))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


TEMPLATE = """\
# A recipe: what to profile, search, train and export. Run it with
#     hwnas run {path}
# Lines that begin with # show other choices; every key may be left out.

name = "{name}"        # the run's folder is runs/{name}
seed = 0               # same seed, same table: same front

[target]               # what the networks are for
device = "local"       # this machine; or "ssh:user@board", "adb" (a phone), or a list of devices of one kind
runtime = "onnxruntime"   # hwnas devices lists what there is: litert, ncnn, openvino, tensorrt, torch-cuda, ...
precision = "fp32"     # or fp16, bf16, int8, as far as the runtime goes
batch = 1              # images of one inference
threads = 1            # of one inference

[data]                 # images and labels
source = "digits"      # scikit-learn's digits: real images that need no download
# source = "torchvision:CIFAR10"     # any classification data set of torchvision, kept in root
# source = "folder:path/to/images"   # train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png
# source = "npz:path/to/arrays.npz"  # x_train, y_train, x_test, y_test
root = "data"

[space]                # the networks to choose from; classes and channels come from the data
name = "mobilenetv3"   # hwnas spaces lists them, with their arguments
resolutions = [16, 24, 32]
depths = [1, 2, 3]
stem_width = 16
stem_stride = 1
stage_widths = [16, 24, 40, 48, 64]
stage_strides = [2, 2, 2, 1, 1]
head_widths = [256, 256]

[profile]              # measuring the target: the latency table
tables = "latency_tables"
networks = 10          # random networks to profile; 0: every block of the space is measured (slower, more exact)
# table = "latency_tables/some-device/table.json"   # use this table, measured elsewhere, and profile nothing

[search]
# latency = "1 ms"     # a hard limit: nothing predicted above it is trained
# confidence = 0.95    # the limit holds for the prediction's upper bound: measurements keep it so often
score = "combined"     # how untrained networks are ranked; or a score by name, or a list: hwnas score --help
evaluations = 120      # networks to score
score_batch = 16       # images to score each on
score_draws = 4        # of initial weights; scores are means over them
sampler = "surrogate"  # or "lemonade", "evolution", "local", "random", or any sampler of Optuna, e.g. "TPESampler"
trainings = 5          # networks to train
# executor = "processes"   # train several at once, on the cores or GPUs of this machine; or on a cluster: "ray"
# workers = 4          # in so many processes
# gpus = 0.5           # the share of a GPU that each has
# storage = "postgresql://user@host/database"   # trials in a database, for many machines
# macs = "20 M"        # other hard limits; also params = "400 k", size = "2 MB"

[train]
epochs = 12
batch_size = 64
threads = 1            # of torch; small networks train no faster on more
# stopper = "curve_ranking"   # ends trainings early that will not come out best; or "successive_halving", "hyperband"
# device = "cpu"       # "auto" takes an NVIDIA GPU if there is one
"""


def new_recipe(path: Path) -> str:
    """The text of a commented recipe, named after its file."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "recipe"
    return TEMPLATE.format(path=path, name=name)
