"""The sections of a recipe: keys, defaults, and what their values may be."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hwnas.errors import RecipeError
from hwnas.units import Bytes, Count, Milliseconds
from hwnas.zeroshot import score_names
from hwprof.runtimes import RUNTIMES, require_runnable
from hwprof.target import PRECISIONS, Target, target_from_json


def _as_float(value: Any) -> Any:
    """A whole number is a number, too, which strict types would refuse."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Section(BaseModel):
    """A part of a recipe: every key known, none changed, no type guessed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TargetSection(Section):
    """[target]: the device (or several of one kind, profiled together) and the runtime that the networks are for.

    Of several precisions each is profiled, and every trained network is on the front in those that pay on the device:
    in one of fewer bits only where it is faster (see hwnas.precisions).
    """

    device: str | list[str] = "local"
    runtime: str = "onnxruntime"
    precision: str | list[str] = "fp32"
    batch: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    optimisation: str = "all"

    @field_validator("precision")
    @classmethod
    def _precisions_differ(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise ValueError("a list of precisions has one at least, and none of them twice")
        return value

    @property
    def precisions(self) -> tuple[str, ...]:
        """All of them, the plainest first."""
        given = [self.precision] if isinstance(self.precision, str) else self.precision
        return tuple(sorted(given, key=[*PRECISIONS, *given].index))

    def target(self, precision: str | None = None) -> Target:
        """The target in a precision, by default the plainest, as hwprof knows it.

        Raises TargetError for a precision that its runtime does not have.
        """
        devices = self.device if isinstance(self.device, str) else ", ".join(self.device)
        precision = precision or self.precisions[0]
        target = target_from_json({**self.model_dump(), "device": devices, "precision": precision})
        if target.runtime in RUNTIMES:  # others cannot be measured from here, but tables of them can be searched under
            require_runnable(target)
        return target


class SpaceSection(Section):
    """[space]: name of a search space; every other key is an argument of that space."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "mobilenetv3"

    def arguments(self) -> dict[str, Any]:
        """The space's own arguments."""
        return dict(self.__pydantic_extra__ or {})


class DataSection(Section):
    """[data]: images and labels (see hwnas.train.data)."""

    source: str = "digits"
    root: str = "data"
    image_size: int | None = Field(default=None, ge=1)
    valid_fraction: float = Field(default=0.1, gt=0, lt=1)
    licence: str | None = None  # of the images, for the cards of networks trained on them


class ProfileSection(Section):
    """[profile]: how much is measured, and where tables are kept; `table`: one that is there, for each precision.

    `fit` random networks correct the blocks' times, `held_out` tell the error, and of `searched`, which are chosen as a
    search would, two thirds do the former and one third the latter.
    `cool_down_seconds` is how long a group may wait until the device has cooled down (phones, boards without a fan).
    Times of an emulator say nothing about a device: a table of one is only searched under if `emulated` allows it.
    """

    tables: str = "latency_tables"
    table: str | list[str] | None = None
    networks: int = Field(default=0, ge=0)
    fit: int | None = Field(default=None, ge=3)
    held_out: int | None = Field(default=None, ge=9)  # the interval of a prediction, 90%, needs nine
    searched: int | None = Field(default=None, ge=0)
    cool_down_seconds: float = Field(default=0, ge=0, le=3600)
    emulated: bool = False

    @field_validator("cool_down_seconds", mode="before")
    @classmethod
    def _whole_seconds_are_seconds(cls, value: Any) -> Any:
        return _as_float(value)


class SearchSection(Section):
    """[search]: what is searched for, and how long.

    `trainings` networks are trained, asked of the `sampler` in batches of `batch`: ours by name ("surrogate",
    "lemonade", "evolution", "local", "random"), or any sampler of Optuna by the name of its class, with
    `sampler_options`. The surrogate first scores `evaluations` networks without training them, which `score_sampler`
    chooses; so does a search that trains none. `latency` (predicted), `macs`, `params` and `size` (of the weights in
    the target's precision) are hard limits: what breaks them is not evaluated. Of several precisions, a network's
    latency is that in the fastest for it, its size that in the one of the fewest bits.

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


class TrainSection(Section):
    """[train]: how networks are trained (see hwnas.train.loop), and on what they are trained and scored.

    `ema`: the decay of an average over the weights, which is then what counts. `log`: for TensorBoard, in the run
    folder.

    `inherit`: a network that the sampler made of another begins with its weights and trains `child_epochs` (None: half
    of `epochs`) at `child_learning_rate` (at its peak; None: half of that of others); where the step does not keep the
    function, it also learns from its parent with `distil_weight`. None: with the sampler "lemonade". A `stopper` ends
    trainings that are not worth their rest (see hwnas.search.fidelity); one that takes longer than `timeout_seconds`
    has failed.
    """

    epochs: int = Field(default=12, ge=1)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float | None = Field(default=None, gt=0)
    augment: Literal[
        "none", "crop", "crop_flip", "random_resized_crop", "randaugment", "trivialaugment", "autoaugment"
    ] = "crop"
    mix: Literal["none", "mixup", "cutmix", "mixup_cutmix"] = "none"
    ema: float = Field(default=0.0, ge=0, lt=1)
    log: bool = False
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
        "learning_rate", "child_learning_rate", "max_seconds", "timeout_seconds", "distil_weight", "ema", mode="before"
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


class SupernetSection(Section):
    """[supernet]: one training for all architectures (see hwnas.supernet), instead of one each.

    `method`: "progressive" (Once-for-All) or "sandwich" (BigNAS) train a supernet for `epochs` of images, or for
    `minutes`, with the batch size, augmentation, mixing, average over the weights and device of [train]. Then
    `evaluations` subnets are evaluated, a model of accuracy is fitted to them, and `search.trainings` members of the
    front that it foretells are evaluated with shared weights; each is trained on for `fine_tune` epochs.
    `sampling`: subnets are drawn evenly over options ("uniform") or over latency. `trained`: take the supernet of this
    run folder, trained for another target.

    "proxyless" (ProxylessNAS) warms up a supernet of paths for `warmup_epochs` and then searches one network for each
    of `targets`, latencies that it ends at or just below, for `epochs` each; `loss` is how latency enters. `fixed`
    says the options of slots that no path decides: `{ resolution = 28, width = 1.0 }`.
    """

    method: Literal["none", "progressive", "sandwich", "proxyless"] = "none"
    trained: str | None = None
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    sampling: Literal["uniform", "latency"] = "uniform"
    evaluations: int = Field(default=200, ge=10)  # as many as a model of accuracy needs
    fine_tune: int = Field(default=0, ge=0)
    targets: list[Milliseconds] = []
    warmup_epochs: int = Field(default=10, ge=0)
    loss: Literal["add", "multiply", "reinforce"] = "add"
    fixed: dict[str, int | float | str] = {}

    @field_validator("epochs", "minutes", "learning_rate", mode="before")
    @classmethod
    def _whole_numbers_are_numbers(cls, value: Any) -> Any:
        return _as_float(value)

    @model_validator(mode="after")
    def _one_budget(self) -> SupernetSection:
        if self.method != "none" and self.trained is None and (self.epochs is None) == (self.minutes is None):
            raise ValueError("a supernet is trained for epochs or for minutes; give one of them")
        if self.method == "proxyless":
            if self.epochs is None or self.epochs != round(self.epochs):
                raise ValueError("proxyless searches for a whole number of epochs, not for minutes")
            if self.trained:
                raise ValueError("proxyless takes no supernet that was trained: its paths serve no other run")
        only = [name for name in ("sampling", "evaluations") if self.method == "proxyless"]
        only += [name for name in ("targets", "warmup_epochs", "loss", "fixed") if self.method != "proxyless"]
        for name in only:
            # what is as it would be anyway may be written down
            if getattr(self, name) != type(self).model_fields[name].get_default():
                others = "the other methods" if self.method == "proxyless" else 'method = "proxyless"'
                raise ValueError(f"{name} is for {others}, and would do nothing here")
        return self

    @property
    def used(self) -> bool:
        """Whether the search is by a supernet."""
        return self.method != "none" or self.trained is not None


class QuantiseSection(Section):
    """[quantise]: `max_drop`, how many points of validation accuracy a network may lose in another precision than fp32.

    Where eight bits cost more, the most sensitive blocks stay in float (see hwnas.export.sensitive), as long as that is
    still faster. It is for targets of several precisions.
    """

    max_drop: float = Field(default=1.0, ge=0, le=100)

    @field_validator("max_drop", mode="before")
    @classmethod
    def _whole_points_are_points(cls, value: Any) -> Any:
        return _as_float(value)
